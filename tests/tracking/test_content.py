"""What trackers are told of a round: figures that metrics and reports have as well, and nothing that a policy withholds."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from stand_in_runs import World, a_run

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation, RoundPlan, SiteEvaluation
from fedpipe_operator.store.objects import required_object
from fedpipe_operator.tracking.content import MOST_FIGURES, End, RoundRecords, end_of, entry_of, identity, parameters, shown_plan
from fedpipe_operator.tracking.records import FinishedRounds


def the_records(world: World, round_: int) -> RoundRecords:
    return RoundRecords(
        required_object(world.store, names.round_evaluation(round_), RoundEvaluation),
        required_object(world.store, names.round_plan(round_), RoundPlan),
        required_object(world.store, names.round_commit(round_), RoundCommit),
    )


def test_the_base_and_every_finished_round_are_told_in_their_order(ended: World) -> None:
    entries = list(FinishedRounds(ended.run, ended.store).after(-1))

    assert [one.round for one in entries] == [0, 1, 2]
    assert entries[0].figures.keys() == {"loss", "accuracy"}
    assert entries[2].figures["round/updates"] == 3
    assert entries[2].figures["loss"] == the_records(ended, 2).evaluation.loss
    assert list(entries[2].by_site) == ["site-a", "site-b", "site-c"]
    assert entries[2].by_site["site-a"]["share"] == pytest.approx(1 / 3)
    assert entries[2].by_site["site-a"]["train_loss"] == 1.0
    assert entries[2].by_site["site-a"]["plan/bits"] == 16


def test_a_round_that_is_not_evaluated_yet_is_not_told(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r2")

    assert [one.round for one in FinishedRounds(world.run, world.store).after(-1)] == [0]


def test_the_loss_of_a_training_is_that_of_the_update_that_was_aggregated(ended: World) -> None:
    records = the_records(ended, 1)
    assert records.commit is not None
    first = records.commit.contributions[0]
    forged = records.commit.model_copy(update={"contributions": (first.model_copy(update={"sha256": "0" * 64}),)})
    rounds = FinishedRounds(ended.run, ended.store)

    assert rounds._train_losses(records.commit, records.plan).keys() == {"site-a", "site-b", "site-c"}
    assert rounds._train_losses(forged, records.plan) == {}


def test_no_loss_of_a_single_step_and_no_label_is_told(ended: World) -> None:
    """A policy may withhold the losses of single steps (`trainingLosses: Mean`): they are told of no site."""
    entry, plan = next(FinishedRounds(ended.run, ended.store).after(0)), the_records(ended, 1).plan
    assert plan is not None
    odd = plan.model_copy(update={"labels": ("a private label",), "label_notes": ("a private note",)})

    losses = {name for figures in entry.by_site.values() for name in figures if "loss" in name}
    assert losses == {"loss", "train_loss"}
    assert "private" not in shown_plan(odd, entry.by_site)
    assert "labels" not in json.loads(shown_plan(odd, entry.by_site))


def test_the_plan_as_an_artefact_has_what_each_site_trains_and_why(ended: World) -> None:
    plan = the_records(ended, 1).plan
    assert plan is not None

    shown = json.loads(shown_plan(plan, ["site-a"]))

    assert shown["round"] == 1
    assert list(shown["plans"]) == ["site-a"]
    assert shown["plans"]["site-a"]["bits"] == 16
    assert shown["plans"]["site-a"]["why"]


def test_sites_beyond_what_mlflow_takes_at_once_are_left_out_in_order_of_name(ended: World) -> None:
    records = the_records(ended, 1)
    one = SiteEvaluation(samples=1, targets=1, loss=0.5, metrics={"accuracy": 0.5})
    many = records.evaluation.model_copy(update={"sites": {f"site-{number:04d}": one for number in range(1000)}})

    entry = entry_of(replace(records, evaluation=many, commit=None))

    assert len(entry.figures) + sum(map(len, entry.by_site.values())) <= MOST_FIGURES
    assert list(entry.by_site)[:2] == ["site-0000", "site-0001"]
    assert list(entry.by_site) == sorted(entry.by_site)


@pytest.mark.parametrize("odd", [None, math.nan, math.inf])
def test_a_figure_that_is_none_or_not_finite_is_left_out(ended: World, odd: float | None) -> None:
    records = the_records(ended, 1)
    evaluation = records.evaluation.model_copy(update={"loss": odd})

    assert "loss" not in entry_of(replace(records, evaluation=evaluation)).figures


def test_parameters_are_texts_that_every_server_takes(ended: World) -> None:
    plan = the_records(ended, 1).plan
    assert plan is not None
    spec = a_run(planning={"bits": [16], "ranks": [4], "batchSizes": [2], "targetModules": ["x" * 250]}).spec

    found = parameters(spec, plan)

    assert found["aggregation.method"] == "Exact"
    assert found["planning.bits"] == "16"
    assert all(isinstance(value, str) and len(value) <= 500 for value in found.values())
    assert len(found) <= 100
    assert "sites.perRound" not in found


def test_the_tags_say_which_run_it_is() -> None:
    tags = identity(a_run().resource, ["b", "a"], "s3://fedpipe/runs")

    assert tags == {
        "fedpipe.namespace": "default",
        "fedpipe.name": "toy",
        "fedpipe.uid": "uid-1",
        "fedpipe.sites": "a, b",
        "fedpipe.store": "s3://fedpipe/runs",
    }


def test_the_end_is_that_of_the_conditions(ended: World) -> None:
    assert end_of(()) is None
    assert end_of(ended.run.resource.status.conditions) == End(is_complete=True, at="1970-01-01T00:16:40Z")
