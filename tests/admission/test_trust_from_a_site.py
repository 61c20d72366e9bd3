"""What was found by trying, from a site: each test is named after its line, and shows in a whole run that it does not hold any more.

One of three sites, `site-b` (or the first by name), sends what it likes; the quorum is two. The run ends as if it had sent nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from kinds_of_runs import TASKS
from stand_in_runs import World, a_run, a_site
from trainer_results import HEAD, WEIGHTS, a_profile, an_evaluation, an_update, good_trainer

from fedpipe_operator import names
from fedpipe_operator.report.facts import round_rows
from fedpipe_operator.report.record import read_record
from fedpipe_operator.rounds.records import Contribution, RoundCommit, RoundEvaluation, RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import EvaluateTask, ExportTask, ProfileTask, RunRef, TrainTask, WeightShape, perplexity_of

LIAR: Final = "site-b"
UNDECLARED: Final = {"type": "SequenceClassification"}
Send = Callable[[Any, Path], Any]


def world_with(folder: Path, kind: type[Any], send: Send, *, liar: str = LIAR, fleet: Any = 3, **spec: Any) -> World:
    """A finished run of three sites, of which the liar's results of this kind of task are what `send` makes."""

    def trainer(task: Any, where: Path) -> Any:
        return send(task, where) if isinstance(task, kind) and task.site == liar else good_trainer(task, where)

    world = World(a_run(fleet, **({"sites": {"quorum": 0.6}} | spec)), folder, trainer)
    world.settle()
    return world


def contributions(world: World) -> dict[str, Contribution]:
    return {one.site: one for one in required_object(world.store, names.round_commit(1), RoundCommit).contributions}


def evaluation(world: World, round_: int) -> RoundEvaluation:
    return required_object(world.store, names.round_evaluation(round_), RoundEvaluation)


def plan(world: World) -> RoundPlan:
    return required_object(world.store, names.round_plan(1), RoundPlan)


def test_samples_is_believed_10_to_the_12_makes_the_global_model_this_sites_by_its_update(tmp_path: Path) -> None:
    world = world_with(tmp_path, TrainTask, lambda task, where: an_update(task, where, samples=10**12))

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert {site: one.share for site, one in contributions(world).items()} == {"site-a": 0.5, "site-c": 0.5}
    assert world.run.resource.status.history[0].left_out[LIAR].startswith("WrongSteps: result of site site-b: samples: found 1000000000000")


def test_samples_is_believed_10_to_the_12_makes_the_global_model_this_sites_by_its_profile(tmp_path: Path) -> None:
    world = world_with(tmp_path, ProfileTask, lambda task, _: a_profile(task, train_samples=10**12))

    shares = {site: one.share for site, one in contributions(world).items()}
    assert shares == pytest.approx({"site-a": 0.25, LIAR: 0.5, "site-c": 0.25})
    assert world.conditions()["Complete"] == "RoundsCompleted"


@pytest.mark.parametrize(
    ("accuracy", "samples"), [(2.0, 10**15), (2.0, 20), (1.0, 10**15), (1.0, 10**7)], ids=["both", "accuracy", "samples", "fewer samples"]
)
def test_accuracy_2_0_with_10_to_the_15_samples_is_the_runs_metric(tmp_path: Path, accuracy: float, samples: int) -> None:
    changes = {"samples": samples, "targets": samples, "metrics": {"accuracy": accuracy}}
    world = world_with(tmp_path, EvaluateTask, lambda task, _: an_evaluation(task).model_copy(update=changes))

    found = evaluation(world, 2)
    assert found.metrics["accuracy"] == pytest.approx(0.2), "as the two others measured it"
    assert found.sites.keys() == {"site-a", "site-c"}
    assert found.missing.keys() == {LIAR}
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_512_targets_a_sample_make_the_reported_loss_and_perplexity_this_sites(tmp_path: Path) -> None:
    """The others have 20 a sample, and a loss of 1 after round 1; the liar says 9, which would have 93 % of the weight."""
    cards = []

    def trainer(task: Any, where: Path) -> Any:
        if isinstance(task, ExportTask):
            cards.append(task.provenance)
        if not isinstance(task, EvaluateTask):
            return TASKS["templates"].train(task, where)
        targets, loss = (20 * 512, 9.0) if task.site == LIAR else (20 * 20, 2.0 / (1 + task.round))
        return an_evaluation(task, targets=targets, loss=loss, metrics={"perplexity": perplexity_of(loss)})

    task = {"type": "CausalLM", "prompt": "{a}", "response": "{b}", "maxLength": 512}
    world = World(a_run(3, task=task, sites={"quorum": 0.6}, rounds={"count": 1, "deadline": "10m"}), tmp_path, trainer)
    world.settle()

    (entry,), shown = world.run.resource.status.history, world.run.resource.status.metric
    (row,), found, half = round_rows(read_record(world.run.resource, world.store)), evaluation(world, 1), (9.0 + 1.0) / 2
    assert (found.loss, entry.loss, row.loss) == (half, half, half)
    assert found.metrics["perplexity"] == row.metric == cards[0].metrics["perplexity"] == perplexity_of(half)
    assert shown.value == entry.metric == pytest.approx(perplexity_of(half), rel=1e-3)


@pytest.mark.parametrize("samples", [20, 10**6])
def test_0_95_reaches_the_target_in_round_1(tmp_path: Path, samples: int) -> None:
    """The others have 0.1 after round 1, and 0.2 after round 2."""
    claim = {"samples": samples, "targets": samples, "metrics": {"accuracy": 0.95}}
    rounds = {"count": 2, "deadline": "10m", "target": {"metric": "accuracy", "value": 0.5}}

    world = world_with(tmp_path, EvaluateTask, lambda task, _: an_evaluation(task, **claim), rounds=rounds, evaluation={"maxSamples": 1000})

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [entry.round for entry in world.run.resource.status.history] == [1, 2]


OF_OTHERS: Final = {
    "run": {"run": RunRef(namespace="default", name="other", uid="uid-2")},
    "site": {"site": "site-c"},
    "round": {"round": 7},
    "attempt": {"attempt": 9},
}


@pytest.mark.parametrize("identity", OF_OTHERS)
def test_the_identity_of_profile_results_is_not_checked(tmp_path: Path, identity: str) -> None:
    world = world_with(tmp_path, ProfileTask, lambda task, _: a_profile(task).model_copy(update=OF_OTHERS[identity]))

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert plan(world).plans.keys() == {"site-a", "site-c"}
    assert plan(world).excluded[LIAR].startswith(f"Wrong{identity.capitalize()}: ")


@pytest.mark.parametrize("identity", OF_OTHERS)
def test_the_identity_of_evaluation_results_is_not_checked(tmp_path: Path, identity: str) -> None:
    changes = OF_OTHERS[identity]
    world = world_with(tmp_path, EvaluateTask, lambda task, _: an_evaluation(task, metrics={"accuracy": 0.9}).model_copy(update=changes))

    found = evaluation(world, 2)
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert (found.sites.keys(), found.metrics["accuracy"]) == ({"site-a", "site-c"}, pytest.approx(0.2))
    assert found.missing[LIAR].startswith(f"Wrong{identity.capitalize()}: ")


def test_facts_of_the_model_come_from_the_alphabetically_first_site(tmp_path: Path) -> None:
    def send(task: Any, _: Path) -> Any:
        honest = a_profile(task).base
        assert honest is not None
        false = {"weights": (WeightShape(name="layer.0.q", d_out=10**6, d_in=10**6),), "head": {"classifier": (-1, 10**6)}}
        return a_profile(task, base=honest.model_copy(update=false))

    world = world_with(tmp_path, ProfileTask, send, liar="site-a")

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert (plan(world).weights, plan(world).head) == (WEIGHTS, HEAD)
    assert plan(world).excluded["site-a"].startswith("WrongBase: its profile has other facts (weights, layers or head)")


@pytest.mark.parametrize("policy_allows", [False, True], ids=["its policy allows 100", "its policy allows all"])
def test_labels_are_a_union_without_limit_9000_false_labels_give_everyone_a_9003_row_head(tmp_path: Path, policy_allows: bool) -> None:
    policy = {"minSites": 1, "maxLabels": 10_000 if policy_allows else 100}
    fleet = [a_site(name, policy=policy) for name in ("site-a", LIAR, "site-c")]
    labels = ("a", "b", "c", *(f"false {number}" for number in range(9000)))

    world = world_with(tmp_path, ProfileTask, lambda task, _: a_profile(task, labels=labels), fleet=fleet, task=UNDECLARED)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert (plan(world).labels, plan(world).head) == (("a", "b", "c"), HEAD)
    assert (LIAR in plan(world).plans) is policy_allows
    if not policy_allows:
        assert plan(world).excluded[LIAR].startswith("PolicyDenied: its profile names 9003 labels, and its policy.maxLabels is 100")


@pytest.mark.parametrize("rows", [100, 101, 10**12])
def test_more_rows_are_dropped_than_the_profile_of_the_site_has(tmp_path: Path, rows: int) -> None:
    """An honest site's data may have grown since, so that is no refusal; what is told, and lowers its weight, is bounded."""
    world = world_with(tmp_path, TrainTask, lambda task, where: an_update(task, where, dropped_rows=rows), task=UNDECLARED)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert (contributions(world)[LIAR].dropped_rows, contributions(world)[LIAR].samples) == (100, 1)
    assert world.run.resource.status.history[0].dropped_rows == {LIAR: 100}


def test_an_evaluation_drops_more_rows_than_the_profile_of_the_site_has(tmp_path: Path) -> None:
    world = world_with(tmp_path, EvaluateTask, lambda task, _: an_evaluation(task, dropped_rows=21), task=UNDECLARED)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [evaluation(world, round_).sites[LIAR].dropped_rows for round_ in (1, 2)] == [20, 20]
