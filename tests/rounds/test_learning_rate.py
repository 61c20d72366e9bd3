"""A run whose spec leaves the learning rate out: it is chosen once, stands in every plan, and an edit counts from the next round on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import World, a_run
from trainer_results import a_profile, good_trainer

from fedpipe_operator import names
from fedpipe_operator.planning.hyperparameters import share_at
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import ProfileResult, ProfileTask, RangeTestResult, RateLoss, TrainTask, parse_task

TESTED = RangeTestResult(
    samples=20,
    loss_before=1.0,
    rates=(RateLoss(learning_rate=1e-3, loss=0.8), RateLoss(learning_rate=3e-3, loss=0.6), RateLoss(learning_rate=1e-2)),
)
OTHERWISE = RangeTestResult(
    samples=20, loss_before=1.0, rates=(RateLoss(learning_rate=1e-3, loss=0.1), RateLoss(learning_rate=3e-3, loss=0.9))
)
CONSTANT = {"learningRateSchedule": "Constant"}
SHORT = CONSTANT | {"maxSteps": 4}
"""Rounds no longer than the range test, so that its best rate is that of all rounds."""
MODES = ["Auto", "Uniform", "UniformWeakest", "Proportional"]


def trainer_that_tests_rates(task: Any, folder: Path) -> Any:
    """Succeeds at every task; a profile tests learning rates if it is asked to."""
    if isinstance(task, ProfileTask):
        return a_profile(task, range_test=None if task.range_test is None else TESTED)
    return good_trainer(task, folder)


def plans(world: World) -> list[RoundPlan]:
    return [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in (1, 2)]


def trained_with(world: World) -> dict[int, set[float]]:
    """By round, the learning rates of all its training tasks."""
    tasks = [task for text in world.backend.tasks.values() if '"plan"' in text and isinstance(task := parse_task(text), TrainTask)]
    return {round_: {task.hyperparameters.learning_rate for task in tasks if task.round == round_} for round_ in (1, 2)}


def edited(run: Run, **training: Any) -> Run:
    """The run with another `spec.training`."""
    spec = run.spec.model_copy(update={"training": type(run.spec.training).model_validate(training)})
    return replace(run, resource=run.resource.model_copy(update={"spec": spec}))


def reason(world: World) -> str:
    return next(one.reason for one in world.run.resource.status.hyperparameters if one.name == "training.learningRate")


@pytest.mark.parametrize("mode", MODES)
def test_in_every_mode_the_rate_is_chosen_from_the_tests_and_used_in_all_rounds(tmp_path: Path, mode: str) -> None:
    world = World(
        a_run(planning={"bits": [16], "ranks": [4], "batchSizes": [2], "mode": mode}, training=SHORT), tmp_path, trainer_that_tests_rates
    )
    world.settle()

    assert [plan.learning_rate for plan in plans(world)] == [3e-3, 3e-3]
    assert trained_with(world) == {1: {3e-3}, 2: {3e-3}}
    assert reason(world).startswith("0.003 is the best of 3 rates: validation loss -40.0 % after 8 steps at 3 of 3 sites")


def test_a_site_with_another_base_model_has_no_say(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == "site-c":
            return a_profile(task, fingerprint="c" * 64, range_test=OTHERWISE)
        return trainer_that_tests_rates(task, folder)

    world = World(a_run(training=SHORT, sites={"quorum": 0.6}), tmp_path, trainer)
    world.settle()

    assert trained_with(world) == {1: {3e-3}, 2: {3e-3}}
    assert "after 8 steps at 2 of 2 sites" in reason(world)


def test_longer_rounds_have_a_lower_rate(tmp_path: Path) -> None:
    world = World(a_run(training=CONSTANT | {"maxSteps": 72}), tmp_path, trainer_that_tests_rates)
    world.settle()

    assert trained_with(world) == {1: {1e-3}, 2: {1e-3}}
    assert reason(world).endswith("times √(8/72), since a round has up to 72 steps")


def test_given_plans_use_the_chosen_rate_too(tmp_path: Path) -> None:
    planning = {"mode": "Manual", "plans": [{"bits": 16, "rank": 4, "steps": 3}]}
    world = World(a_run(planning=planning, training=CONSTANT), tmp_path, trainer_that_tests_rates)
    world.settle()

    assert trained_with(world) == {1: {3e-3}, 2: {3e-3}}


def test_a_rate_in_the_spec_is_obeyed_and_nothing_is_tested(tmp_path: Path) -> None:
    world = World(a_run(training=CONSTANT | {"learningRate": 0.05}), tmp_path, trainer_that_tests_rates)
    world.settle()

    assert trained_with(world) == {1: {0.05}, 2: {0.05}}
    assert reason(world) == "from the spec"


def test_where_no_site_tested_a_rate_the_run_goes_on_with_the_default(tmp_path: Path) -> None:
    world = World(a_run(training=CONSTANT), tmp_path)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert trained_with(world) == {1: {2e-4}, 2: {2e-4}}
    assert reason(world).startswith("the default: no two rates could be tested")


def test_an_operator_that_restarts_after_round_1_keeps_the_rate_and_its_reason(tmp_path: Path) -> None:
    world = World(a_run(training=SHORT), tmp_path, trainer_that_tests_rates)
    world.work_until("train-r1")
    for site in "abc":  # chosen again, it would be another rate
        key = names.profile_result(f"site-{site}", 0)
        profile = required_object(world.store, key, ProfileResult)
        world.store.write(key, profile.model_copy(update={"range_test": OTHERWISE}).to_json().encode())
    plan = required_object(world.store, names.round_plan(1), RoundPlan)
    world.store.write(names.round_plan(1), plan.model_copy(update={"profile_hashes": {}}).to_json().encode())  # or they would be refused
    world.restart()
    world.settle()

    first, second = plans(world)
    assert (second.learning_rate, second.hyperparameters[1]) == (first.learning_rate, first.hyperparameters[1])


def test_a_rate_that_is_added_during_a_round_counts_from_the_next_one(tmp_path: Path) -> None:
    world = World(a_run(training=SHORT), tmp_path, trainer_that_tests_rates)
    world.work_until("train-r1")
    world.run = edited(world.run, learningRate=0.05, **CONSTANT)
    world.settle()

    assert trained_with(world) == {1: {3e-3}, 2: {0.05}}
    assert reason(world) == "from the spec"


def test_a_rate_that_is_removed_stays_because_no_site_has_tested_others(tmp_path: Path) -> None:
    world = World(a_run(training=CONSTANT | {"learningRate": 0.05}), tmp_path, trainer_that_tests_rates)
    world.work_until("train-r1")
    world.run = edited(world.run, **CONSTANT)
    world.settle()

    assert trained_with(world) == {1: {0.05}, 2: {0.05}}
    assert reason(world) == "as in the rounds before"


# --- the schedule


def test_without_a_schedule_in_the_spec_the_rate_falls_along_a_cosine(tmp_path: Path) -> None:
    """After half of a run, which has two rounds, it is half-way from all to a tenth."""
    world = World(a_run(training={"learningRate": 0.1}), tmp_path)
    world.settle()

    assert trained_with(world) == {1: {0.1}, 2: {0.1 * share_at(None, 0.5)}}
    assert [plan.learning_rate for plan in plans(world)] == [0.1, 0.1]


def test_a_second_attempt_uses_the_rate_of_its_round_although_the_schedule_was_edited(tmp_path: Path) -> None:
    world = World(a_run(training={"learningRate": 0.1}), tmp_path)
    world.work_until("train-r2")
    world.run = edited(world.run, learningRate=0.1, **CONSTANT)
    world.backend.kill("toy-train-r2-site-b-a0")
    world.settle()

    assert "toy-train-r2-site-b-a1" in world.backend.tasks
    assert trained_with(world)[2] == {0.1 * share_at(None, 0.5)}


def test_a_schedule_that_is_edited_during_a_round_counts_from_the_next_one(tmp_path: Path) -> None:
    world = World(a_run(training={"learningRate": 0.1}), tmp_path)
    world.work_until("train-r1")
    world.run = edited(world.run, learningRate=0.1, **CONSTANT)
    world.settle()

    assert trained_with(world) == {1: {0.1}, 2: {0.1}}


def test_a_plan_of_a_version_without_schedules_uses_its_rate_as_it_is(tmp_path: Path) -> None:
    world = World(a_run(training={"learningRate": 0.1}), tmp_path)
    world.work_until("train-r2")
    plan = json.loads(world.store.read(names.round_plan(2)))
    del plan["learningRateShare"]

    assert RoundPlan.model_validate_json(json.dumps(plan)).learning_rate_share == 1.0
