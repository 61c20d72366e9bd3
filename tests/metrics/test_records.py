"""What is kept of runs between scrapes: figures of their sites, for how long, in which order, and what goes with an object."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scrapes import scrape_of
from stand_in_cluster import KubeWorld, renamed
from stand_in_runs import a_run
from trainer_results import good_trainer

from fedpipe_operator.metrics import counting
from fedpipe_operator.metrics.counter_series import MOST_REASONS, OTHER, bounded
from fedpipe_operator.metrics.counting import Increment
from fedpipe_operator.metrics.listener import Listener
from fedpipe_operator.metrics.run_record import LINGER_SECONDS, failed_rounds, next_record
from fedpipe_operator.rounds import Observed
from fedpipe_operator.rounds.observed import CommitSummary, EvaluationSummary, PlanSummary
from fedpipe_operator.rounds.records import Contribution
from fedpipe_trainer.contract import Artifact, Measured, TrainTask

OF = {"namespace": "default", "run": "toy"}
ATTEMPTS = "attempts_total"


def a_world(folder: Path, trainer: Any = good_trainer, **spec: Any) -> KubeWorld:
    world = KubeWorld(folder, a_run(**spec), trainer)
    world.observer = Listener(world.clock)
    world.restart()
    return world


def records_of(world: KubeWorld) -> Any:
    assert isinstance(world.observer, Listener)
    return world.observer._records


def test_the_figures_of_the_last_training_stay_until_the_next_one_and_five_minutes_after_the_end(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.work_until("train-r2")
    between = scrape_of(world)
    world.settle()
    world.reconcile()
    at_the_end = scrape_of(world)
    world.now += LINGER_SECONDS
    later = scrape_of(world)

    assert len(between.named("task_loss", **OF)) == 3
    assert len(at_the_end.named("task_loss", **OF)) == len(at_the_end.named("plan_bits", **OF)) == 3
    assert not later.has("task_loss", **OF)
    assert not later.has("plan_bits", **OF)
    assert later.has("run_status_condition", **OF)
    assert later.by("metric", "run_metric", **OF) == at_the_end.by("metric", "run_metric", **OF)


def test_what_is_kept_of_a_run_that_has_been_over_for_long_is_small_although_nobody_scrapes(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.settle()
    world.reconcile()
    world.now += LINGER_SECONDS
    other = a_run().resource
    records_of(world).run_ended(replace(world.run, resource=other.model_copy(update={"metadata": other.metadata})))
    (known,) = records_of(world)._known.values()

    assert known.record.plan is None
    assert (known.record.trainings, known.record.used, known.record.sites) == ({}, {}, ())


def test_a_deleted_run_is_forgotten(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.work_until("train-r1")
    world.runs.forget(world.body())

    assert records_of(world)._known == {}


def test_a_site_that_is_made_again_begins_with_no_attempts(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.work_until("train-r1")
    records_of(world).site_deleted("default", "site-a")
    scrape = scrape_of(world)

    assert scrape.by("site", ATTEMPTS) == {"": 1, "site-b": 1, "site-c": 1}  # the dry export is no site's


def test_a_run_that_is_not_in_the_cache_shows_no_figures_although_they_are_known(tmp_path: Path) -> None:
    """A reconcile may end after its object was deleted."""
    world = a_world(tmp_path)
    world.work_until("train-r1")
    world.add(renamed(world.run, "other"))

    assert scrape_of(world, "toy").has("plan_bits", **OF)
    assert not scrape_of(world, "other").has("plan_bits", **OF)


def a_commit(round_: int, *sites: str) -> CommitSummary:
    shares = tuple(Contribution(site=site, attempt=0, sha256="", samples=1, share=1.0) for site in sites)
    adapter = Artifact(name="a", size=1, sha256="0" * 64)
    return CommitSummary(round_, adapter, shares, {}, {}, {}, (), 0.0, 0.0, 0)


def a_plan(round_: int, *sites: str) -> PlanSummary:
    return PlanSummary(round_, 0.0, "", None, "", (), sites, 1, (), None)


def test_only_rounds_in_a_row_count_as_failed_in_a_row() -> None:
    """The rounds that are observed are the last ones, and the first and the best of long ago."""
    plans = {round_: a_plan(round_, "a", "b") for round_ in (1, 5, 6)} | {7: a_plan(7, "a")}
    commits = {1: a_commit(1, "a"), 5: a_commit(5, "a"), 6: a_commit(6, "a"), 7: a_commit(7, "a")}

    assert failed_rounds(Observed(plans=plans, commits=commits)) == {"b": 2}, "in round 7 it was not selected; of round 4 nothing is known"
    assert failed_rounds(Observed(plans=plans, commits=commits | {7: a_commit(7)})) == {"a": 1, "b": 2}
    assert failed_rounds(Observed()) == {}


def failing(site: str, rounds: tuple[int, ...]) -> Any:
    """A trainer that is killed at this site in these rounds, whatever the attempt."""

    def trainer(task: Any, folder: Path) -> Any:
        is_killed = isinstance(task, TrainTask) and task.site == site and task.round in rounds
        return None if is_killed else good_trainer(task, folder)

    return trainer


def test_a_site_that_failed_round_after_round_comes_first_and_says_how_often(tmp_path: Path) -> None:
    world = a_world(tmp_path, failing("site-c", (1, 2)), sites={"quorum": 0.6}, rounds={"count": 4, "deadline": "10m"})
    world.work_until("train-r3")
    world.reconcile()
    failed = scrape_of(world)
    (known,) = records_of(world)._known.values()
    first = known.record.sites[0]
    world.settle()
    healed = scrape_of(world)

    assert failed.by("site", "site_failed_rounds", **OF) == {"site-c": 2}
    assert first == "site-c"
    assert healed.by("site", "site_failed_rounds", **OF) == {}


def test_the_stage_under_way_begins_with_its_first_job_and_ends_with_the_run(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.now += 50
    world.work_until("train-r1")
    world.now += 20
    world.reconcile()
    training = scrape_of(world)
    world.settle()
    world.reconcile()

    assert training.by("stage", "run_stage_started_timestamp_seconds", **OF) == {"Training": 1_000_050}
    assert training.by("stage", "run_stage_deadline_seconds", **OF) == {"Training": 600}
    assert not scrape_of(world).has("run_stage_started_timestamp_seconds")


def test_a_phase_that_a_site_made_up_and_numbers_that_are_none_are_not_shown(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        result = good_trainer(task, folder)
        if not isinstance(task, TrainTask):
            return result
        measured = Measured(seconds={"train": 5.0, "patient 4711": 1.0})
        return result.model_copy(update={"measured": measured, "train_loss": float("nan"), "tokens_per_second": float("inf")})

    world = a_world(tmp_path, trainer)
    world.work_until("train-r2")
    scrape = scrape_of(world)

    assert scrape.by("phase", "task_phase_seconds", site="site-a") == {"train": 5.0}
    assert not scrape.has("task_loss")
    assert not scrape.has("site_tokens_per_second")
    assert not any("4711" in value for _, labels in scrape.values for _, value in labels)


@pytest.mark.parametrize("reason", ["Evicted", "OutOfMemory", "Completed"])
def test_a_reason_of_one_word_is_a_labels_value(reason: str) -> None:
    increment = Increment(ATTEMPTS, ("default", "site-a", "train", reason))

    assert bounded(increment, ()) == increment


@pytest.mark.parametrize("reason", ["", "two words", "lower", "W" * 65, 'a"}', "X1"])
def test_what_is_no_word_of_kubernetes_or_ours_is_another_reason(reason: str) -> None:
    assert bounded(Increment(ATTEMPTS, ("default", "site-a", "train", reason)), ()).labels[-1] == OTHER


def test_whoever_writes_new_reasons_into_jobs_makes_no_more_series_than_a_few() -> None:
    reasons = {f"Reason{chr(65 + number // 26)}{chr(97 + number % 26)}" for number in range(MOST_REASONS)}
    new, known = Increment(ATTEMPTS, ("default", "a", "train", "Another")), Increment(ATTEMPTS, ("default", "a", "train", min(reasons)))

    assert bounded(new, reasons).labels[-1] == OTHER
    assert bounded(known, reasons) == known


def test_whoever_writes_reasons_of_refusals_into_a_bucket_makes_no_series_of_them() -> None:
    known, made_up = (Increment("updates_refused_total", ("default", reason)) for reason in ("WrongSteps", "Reason4711"))

    assert bounded(known, ()) == known
    assert bounded(made_up, ()).labels == ("default", OTHER)


def test_of_an_evaluation_only_the_metrics_of_the_task_are_shown_whoever_wrote_it() -> None:
    run, figures = a_run(), {"accuracy": 0.8, "macroF1": 0.7}
    forged = EvaluationSummary(round=1, loss=0.5, metrics=figures | {f"metric{number}": 0.5 for number in range(100)}, sites=())
    record = next_record(None, run, Observed(evaluations={1: forged}), status=run.resource.status, now_ended=None)

    assert record.figures == figures | {"loss": 0.5}


@pytest.mark.parametrize("seconds", [1e308, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("count", [10**400, 10**308, -1], ids=["no float", "the largest float", "negative"])
def test_the_sums_of_all_runs_stay_numbers_whatever_a_commit_says(seconds: float, count: int) -> None:
    forged = Observed(commits={1: replace(a_commit(1, "a"), seconds=seconds, bytes_read=count)})
    _, news = counting.count(None, a_run(), forged, ended=(), now=0.0)
    (one,) = news.aggregated

    assert 0 <= one.seconds <= counting.MOST_SECONDS
    assert 0 <= one.bytes_read <= counting.MOST_BYTES
