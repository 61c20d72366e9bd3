"""What a round showed changes the next plan: corrected forecasts, less memory after a plan ran out of it, all layers once a run stalls."""

from pathlib import Path
from typing import Any

import pytest
from site_profiles import GIB, a_site, a_spec
from stand_in_runs import World, a_run
from trainer_results import a_failure, an_update, good_trainer

from fedpipe_operator import names
from fedpipe_operator.planning import History, plan_round
from fedpipe_operator.rounds.evidence import measurements
from fedpipe_operator.rounds.observed import EvaluationSummary, summarize_commit
from fedpipe_operator.rounds.policies import is_stalled
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan
from fedpipe_operator.sites import Correction, Measurement, corrected, correction_note, measurement
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import Artifact, FailureReason, Forecast, Measured, Outcome, Plan, RunRef, TrainResult, TrainTask

PLAN = Plan(
    bits=16,
    batch_size=4,
    steps=10,
    ranks={"w": 8},
    forecast=Forecast(memory_bytes=1000, seconds=30.0, step_seconds=20.0, upload_bytes=1, download_bytes=1),
)


def measured(**changes: Any) -> Measurement:
    """Exactly what the plan predicted; `changes` replaces figures."""
    exact = Measurement(step_seconds=20.0, other_seconds=10.0, peak_memory_bytes=1000, steps=10)
    return exact.model_copy(update=changes)


def test_a_forecast_that_held_is_not_corrected() -> None:
    assert corrected(Correction(), PLAN, measured()) == Correction()
    assert correction_note(Correction(), Correction()) == ""


def test_ratios_of_measured_to_predicted_multiply_the_next_forecast() -> None:
    now = corrected(Correction(step_seconds=2.0), PLAN, measured(step_seconds=60.0, other_seconds=5.0, peak_memory_bytes=1100))

    assert (now.step_seconds, now.other_seconds, now.memory) == (6.0, 0.5, 1.1)
    assert correction_note(Correction(step_seconds=2.0), now) == "re-planned: a step took 3 times as long as predicted"


def test_steps_that_a_full_cache_made_faster_say_nothing_of_plans_without_it() -> None:
    cached = PLAN.model_copy(update={"cache_activations": True, "lowest_layer": 1})

    assert corrected(Correction(step_seconds=2.0), cached, measured(step_seconds=10.0)).step_seconds == 2.0
    assert corrected(Correction(step_seconds=2.0), cached, measured(step_seconds=60.0)).step_seconds == 6.0


def test_only_the_steps_that_were_taken_are_compared() -> None:
    """Training that the deadline ended after five of ten steps was as fast as predicted."""
    assert corrected(Correction(), PLAN, measured(steps=5, step_seconds=10.0)).step_seconds == 1.0


@pytest.mark.parametrize(("seconds", "factor"), [(1e9, 20.0), (1e-9, 0.05), (0.0, 1.0)])
def test_one_measurement_changes_a_forecast_by_a_bounded_factor(seconds: float, factor: float) -> None:
    assert corrected(Correction(), PLAN, measured(step_seconds=seconds)).step_seconds == factor


def test_after_a_plan_ran_out_of_memory_the_next_must_be_smaller_by_its_own_forecast() -> None:
    first = corrected(Correction(), PLAN, measured(out_of_memory=True, peak_memory_bytes=5000))

    assert (first.memory_limit, first.memory) == (900, 1.0)
    assert correction_note(Correction(), first).startswith(
        "re-planned: the last plan ran out of memory, so that its forecast must stay below"
    )
    smaller = PLAN.model_copy(update={"forecast": PLAN.forecast.model_copy(update={"memory_bytes": 900})})
    assert corrected(first, smaller, measured(out_of_memory=True)).memory_limit == 810


def test_a_site_that_left_nothing_keeps_its_correction() -> None:
    assert corrected(Correction(memory=1.5), PLAN, None) == Correction(memory=1.5)


def test_a_completed_training_is_measured_by_its_phases_and_a_smaller_micro_batch_means_that_memory_ran_out() -> None:
    seconds = {"load": 3.0, "train": 8.0, "transfer": 1.0, "evaluate": float("nan")}
    result = TrainResult(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        round=1,
        attempt=1,
        outcome=Outcome.COMPLETED,
        measured=Measured(seconds=seconds, peak_memory_bytes=77),
        steps=9,
        resumed_from_step=4,
        micro_batch_size=2,
    )

    found = measurement(result, PLAN)

    assert found == Measurement(step_seconds=8.0, other_seconds=4.0, peak_memory_bytes=77, steps=5, out_of_memory=True)


def test_a_site_that_ran_out_of_memory_for_good_is_measured_by_its_reason() -> None:
    absent = {"a": "OutOfMemory: killed", "b": "Diverged: NaN"}
    adapter = Artifact(name="adapter", size=9, sha256="a" * 64)
    commit = summarize_commit(RoundCommit(round=1, method="Exact", adapter=adapter, ranks={}, contributions=(), absent=absent))

    found = measurements(commit)

    assert found == {"a": Measurement(step_seconds=0, other_seconds=0, peak_memory_bytes=0, steps=0, out_of_memory=True)}


def evaluations(*values: float) -> dict[int, EvaluationSummary]:
    return {at: EvaluationSummary(round=at, loss=None, metrics={"accuracy": value}, sites=()) for at, value in enumerate(values)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.1, 0.5, 0.6), False),
        ((0.1, 0.5, 0.6, 0.7), False),
        ((0.1, 0.6, 0.6, 0.605), True),
        ((0.1, 0.6, 0.5, 0.4), True),
        ((0.1, 0.6, 0.6, 0.7), False),
    ],
)
def test_a_run_stalls_when_two_rounds_bring_less_than_a_fiftieth_of_all(values: tuple[float, ...], *, expected: bool) -> None:
    assert is_stalled(evaluations(*values), "accuracy") is expected


PLANNING: dict[str, Any] = {"bits": [16], "ranks": [4], "batchSizes": [1, 2, 4]}


def plans_of(world: World) -> list[RoundPlan]:
    return [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in (1, 2)]


def trainer_of(**figures: Any) -> Any:
    """The stand-in trainer, whose first round at site-a needs what `figures` says instead of what its plan predicts."""

    def train(task: Any, folder: Path) -> Any:
        if not isinstance(task, TrainTask):
            return good_trainer(task, folder)
        predicted, is_odd = task.plan.forecast, (task.site, task.round) == ("site-a", 1)
        seconds = {
            "train": predicted.step_seconds * (figures.get("slower", 1) if is_odd else 1),
            "load": predicted.seconds - predicted.step_seconds,
        }
        changes = {"micro_batch_size": figures["micro_batch"]} if is_odd and "micro_batch" in figures else {}
        measured = Measured(seconds=seconds, peak_memory_bytes=predicted.memory_bytes)
        return an_update(task, folder, **changes).model_copy(update={"measured": measured})

    return train


def out_of_memory_at_site_a(task: Any, folder: Path) -> Any:
    if isinstance(task, TrainTask) and task.site == "site-a":
        return a_failure(TrainResult, task, FailureReason.OUT_OF_MEMORY, "one sample does not fit in memory")
    return good_trainer(task, folder)


def test_a_site_that_was_slower_than_predicted_trains_on_fewer_samples_in_the_next_round_and_an_event_says_why(tmp_path: Path) -> None:
    rounds = {"count": 2, "deadline": "30s"}
    world = World(a_run(rounds=rounds, planning=PLANNING, training={"epochs": 1000}), tmp_path, trainer_of(slower=4))
    world.settle()

    first, second = plans_of(world)

    samples = {site: [plan.plans[site].steps * plan.plans[site].batch_size for plan in (first, second)] for site in ("site-a", "site-b")}
    assert samples["site-a"][1] < samples["site-a"][0] / 3
    assert samples["site-b"][1] >= samples["site-b"][0]
    assert second.corrections["site-a"].step_seconds == pytest.approx(4)
    messages = [event.message for event in world.events if event.reason == "Replanned"]
    assert messages == ["round 2: site-a: re-planned: a step took 4 times as long as predicted"]


def test_a_site_whose_memory_ran_out_gets_a_smaller_plan_and_never_the_same_again() -> None:
    site, spec = a_site(memory_bytes=6 * GIB), a_spec(planning={"bits": [16], "ranks": [8], "batchSizes": [1, 2, 4, 8, 16]})
    plan, correction, seen = plan_round(spec, {"ward": site}, {}).plans.plans["ward"], Correction(), []

    for round_ in (2, 3, 4):
        seen.append(plan.forecast.memory_bytes)
        ran_out = Measurement(step_seconds=0, other_seconds=0, peak_memory_bytes=0, steps=0, out_of_memory=True)
        correction = corrected(correction, plan, ran_out)
        history = History(round_, corrections={"ward": correction}, notes={"ward": "re-planned: …"})
        plan = plan_round(spec, {"ward": site}, {}, history).plans.plans["ward"]
        assert plan.forecast.memory_bytes <= 0.9 * seen[-1]
        assert "re-planned: …" in plan.why


def test_a_site_that_nothing_smaller_fits_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    planning = PLANNING | {"batchSizes": [1]}
    world = World(a_run(rounds={"count": 2}, planning=planning, sites={"quorum": 0.5}), tmp_path, out_of_memory_at_site_a)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert set(plans_of(world)[1].excluded) == {"site-a"}
    assert plans_of(world)[1].excluded["site-a"].startswith("not even its smallest plan fits: after a plan of it ran out of memory")
