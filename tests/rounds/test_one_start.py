"""One start a round: a site's training first evaluates the last round's adapter. What follows from it for runs, retries and ends."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import World, a_run, a_site
from trainer_results import a_failure, an_evaluation, good_trainer, perform

from fedpipe_operator import names
from fedpipe_operator.rounds import exported_round, stages
from fedpipe_operator.rounds.records import RoundEvaluation
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import EvaluateResult, EvaluateTask, FailureReason, ProfileResult, ProfileTask, TrainResult, TrainTask

SITES = ("site-a", "site-b", "site-c")
SMALLER = {"bits": [16], "ranks": [4], "batchSizes": [1, 2, 4]}
ACCURACY_03 = {"metric": "accuracy", "value": 0.3}
"""A target that a stand-in's evaluation reaches in round 3, since its accuracy is a tenth of the round."""


def evaluation_of(world: World, round_: int) -> RoundEvaluation:
    return required_object(world.store, names.round_evaluation(round_), RoundEvaluation)


def task_of(world: World, job: str) -> TrainTask:
    return TrainTask.model_validate_json(world.backend.tasks[job])


def edit(world: World, **rounds: Any) -> None:
    """Edit `spec.rounds`."""
    spec = world.run.spec.model_copy(update={"rounds": world.run.spec.rounds.model_copy(update=rounds)})
    world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": spec}))


def failing(kind: type[Any], result: type[Any], **where: Any) -> Callable[[Any, Path], Any]:
    """A trainer that diverges in this kind of task, where its fields have these values."""

    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, kind) and all(getattr(task, name) == value for name, value in where.items()):
            return a_failure(result, task, FailureReason.DIVERGED, "the loss is NaN")
        return good_trainer(task, folder)

    return trainer


def test_a_site_has_one_job_a_round_and_the_last_adapter_one_evaluation_more(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 4}), tmp_path)
    world.settle()

    of_sites = [name for name in world.backend.started if "site-b" in name]

    assert of_sites == [
        "toy-profile-site-b-a0",
        *(f"toy-train-r{round_}-site-b-a0" for round_ in (1, 2, 3, 4)),
        "toy-evaluate-r4-site-b-a0",
    ]
    assert [sorted(evaluation_of(world, round_).sites) for round_ in range(5)] == [list(SITES)] * 5


def test_a_message_says_how_many_sites_have_evaluated_and_how_many_are_done(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r2")
    messages = []
    for step in ("a", "b"):
        world.backend.evaluate(f"toy-train-r2-site-{step}-a0")
        world.reconcile()
        messages.append(world.message("Progressing"))
    world.backend.work("toy-train-r2-site-a-a0")
    world.reconcile()
    messages.append(world.message("Progressing"))
    world.backend.evaluate("toy-train-r2-site-c-a0")
    for _ in range(2):
        world.reconcile()
        messages.append(world.message("Progressing"))

    assert messages == [
        "0 of 3 sites done; 1 of 3 have evaluated round 1",
        "0 of 3 sites done; 2 of 3 have evaluated round 1",
        "1 of 3 sites done; 2 of 3 have evaluated round 1",
        "1 of 3 sites done; round 1 is evaluated",
        "1 of 3 sites done",
    ]
    assert world.conditions()["Progressing"] == "Training"
    assert world.run.resource.status.metric is not None
    assert world.run.resource.status.metric.round == 1
    assert world.run.resource.status.round == 2


def test_in_round_1_the_message_speaks_of_the_base(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r1")
    world.reconcile()

    assert world.message("Progressing") == "0 of 3 sites done; 0 of 3 have evaluated the base"


def test_an_evaluation_that_reaches_the_target_ends_the_trainings_of_the_next_round(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 9, "target": ACCURACY_03}), tmp_path)
    training = world.work_until("train-r4")
    world.backend.work("toy-train-r4-site-a-a0")
    for site in ("b", "c"):
        world.backend.evaluate(f"toy-train-r4-site-{site}-a0")
    world.reconcile()
    before = list(world.backend.discarded)
    world.reconcile()

    assert before == []
    assert world.backend.discarded == [name for name in training if "site-a" not in name]
    assert world.conditions()["Progressing"] == "Exporting"

    world.settle()

    status = world.run.resource.status
    assert world.conditions()["Complete"] == "TargetReached"
    assert world.message("Complete") == "after round 3"
    assert (status.round, [entry.round for entry in status.history]) == (3, [1, 2, 3])
    assert (status.updates.summary if status.updates else "") == "3/3"
    assert "toy-aggregate-r4-a0" not in world.backend.started
    assert not any("evaluate" in name for name in world.backend.started)


def test_a_round_that_the_patience_ends_is_not_committed(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        return an_evaluation(task, metrics={"accuracy": 0.5}) if isinstance(task, EvaluateTask) else good_trainer(task, folder)

    world = World(a_run(rounds={"count": 9, "patience": 2}), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Complete"] == "PatienceExhausted"
    assert world.message("Complete") == "after round 3"
    assert world.store.read(names.round_commit(4)) is None


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_order_a_round_is_aggregated_only_after_the_last_one_is_evaluated_and_the_bytes_are_the_same(
    tmp_path: Path, seed: int
) -> None:
    undisturbed, world = World(a_run(), tmp_path / "one"), World(a_run(rounds={"count": 2, "attempts": 9}), tmp_path / "two")
    undisturbed.settle()
    choose = random.Random(seed)  # noqa: S311 -- no secret

    for _ in range(600):
        if choose.random() < 0.3:
            world.restart()
        while world.reconcile().actions:  # commits make the next step due at once
            pass
        if "Complete" in world.conditions():
            break
        for round_ in (1, 2):
            if f"toy-aggregate-r{round_}-a0" in world.backend.started:
                assert world.store.read(names.round_evaluation(round_ - 1)) is not None
        active = world.backend.active_jobs()
        if active:
            job = choose.choice(active)
            evaluates = "train" in job and task_of(world, job).evaluation is not None
            if evaluates and choose.random() < 0.5:
                world.backend.evaluate(job)
            elif "train" in job and choose.random() < 0.3:
                world.backend.kill(job)
            else:
                world.backend.work(job)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.final_adapter() == undisturbed.final_adapter()
    assert [sorted(evaluation_of(world, round_).sites) for round_ in (0, 1, 2)] == [list(SITES)] * 3


def test_a_retry_does_not_evaluate_again_and_the_first_attempts_evaluation_counts(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r2")
    world.backend.evaluate("toy-train-r2-site-b-a0")
    world.backend.kill("toy-train-r2-site-b-a0")
    world.reconcile()

    assert task_of(world, "toy-train-r2-site-b-a1").evaluation is None

    world.settle()
    assert sorted(evaluation_of(world, 1).sites) == list(SITES)
    assert world.run.resource.status.history[1].updates == "3/3"


def test_a_retry_after_an_attempt_that_did_not_evaluate_does_it(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r2")
    world.backend.kill("toy-train-r2-site-b-a0")
    for site in ("a", "c"):
        world.backend.work(f"toy-train-r2-site-{site}-a0")
    world.reconcile()

    assert world.store.read(names.round_evaluation(1)) is None
    evaluation = task_of(world, "toy-train-r2-site-b-a1").evaluation
    assert evaluation is not None
    assert evaluation.result.endswith(names.evaluation_result(1, "site-b", 1))

    world.settle()
    assert sorted(evaluation_of(world, 1).sites) == list(SITES)


def test_a_site_that_is_dropped_after_it_evaluated_is_still_an_evaluator(tmp_path: Path) -> None:
    trainer = failing(TrainTask, TrainResult, site="site-c", round=2)
    world = World(a_run(sites={"quorum": 0.6}), tmp_path, trainer)
    world.settle()

    assert sorted(evaluation_of(world, 1).sites) == list(SITES)
    assert world.run.resource.status.history[1].left_out == {"site-c": "Diverged: the loss is NaN"}


def test_a_failed_evaluation_costs_its_site_the_evaluation_and_not_the_round(tmp_path: Path) -> None:
    trainer = failing(EvaluateTask, EvaluateResult, site="site-c", round=1)
    world = World(a_run(sites={"quorum": 1.0}), tmp_path, trainer)
    world.work_until("train-r2")
    for site in SITES:
        world.backend.evaluate(f"toy-train-r2-{site}-a0")
    world.reconcile()

    evaluation = evaluation_of(world, 1)
    assert sorted(evaluation.sites) == ["site-a", "site-b"]
    assert evaluation.missing == {"site-c": "Diverged: the loss is NaN"}

    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [entry.updates for entry in world.run.resource.status.history] == ["3/3", "3/3"]
    assert "toy-train-r2-site-c-a1" not in world.backend.started


def test_a_metric_of_too_few_sites_ends_no_run_and_the_missing_ones_are_named(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, EvaluateTask) and task.round == 1 and task.site != "site-a":
            return a_failure(EvaluateResult, task, FailureReason.OUT_OF_MEMORY, "one sample does not fit in memory")
        is_easy = isinstance(task, EvaluateTask) and task.round == 1
        return an_evaluation(task, metrics={"accuracy": 0.95}) if is_easy else good_trainer(task, folder)

    target = {"metric": "accuracy", "value": 0.9}
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 2, "target": target, "patience": 1}), tmp_path, trainer)
    world.settle()

    status, why = world.run.resource.status, "OutOfMemory: one sample does not fit in memory"
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [(entry.round, entry.metric) for entry in status.history] == [(1, 0.95), (2, 0.2)]
    assert [entry.missing_evaluations for entry in status.history] == [{"site-b": why, "site-c": why}, {}]
    assert status.metric is not None
    assert (status.metric.round, status.metric.value) == (2, 0.2)
    assert "toy-export-a0" in world.backend.tasks
    few = "round 1: 3/3 updates; accuracy was measured at 1 site and decides nothing: the quorum is 2"
    assert [(event.message, event.warning) for event in world.events if event.reason == "RoundCompleted"] == [
        (f"{few}; site-b did not evaluate: {why}; site-c did not evaluate: {why}", True),
        ("round 2: 3/3 updates", False),
    ]


def test_after_a_round_that_too_few_sites_evaluated_the_status_shows_the_metric_before_it(tmp_path: Path) -> None:
    world = World(
        a_run(sites={"quorum": 1.0}, rounds={"count": 2}), tmp_path, failing(EvaluateTask, EvaluateResult, site="site-c", round=2)
    )
    world.settle()

    metric = world.run.resource.status.metric
    assert metric is not None
    assert (metric.round, metric.value) == (1, 0.1)
    assert exported_round(world.run.spec, evaluations(world, 2)) == 1


def evaluations(world: World, rounds: int) -> dict[int, RoundEvaluation]:
    return {round_: evaluation_of(world, round_) for round_ in range(rounds + 1)}


def test_a_run_goes_on_when_no_site_can_evaluate(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path, failing(EvaluateTask, EvaluateResult))
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.metric is None
    assert sorted(evaluation_of(world, 1).missing) == list(SITES)


def test_an_update_without_the_evaluation_that_was_asked_for_is_named(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r1")
    world.backend.work("toy-train-r1-site-a-a0")
    world.store.delete(names.evaluation_result(0, "site-a", 0))
    world.settle()

    assert evaluation_of(world, 0).missing == {"site-a": "NoResult: its trainer sent an update but no evaluation"}
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_the_deadline_covers_evaluation_and_training(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.3}, rounds={"count": 2, "deadline": "10m"}), tmp_path)
    world.work_until("train-r2")
    world.backend.work("toy-train-r2-site-a-a0")
    world.backend.evaluate("toy-train-r2-site-b-a0")
    world.now += 599
    world.reconcile()
    assert world.store.read(names.round_evaluation(1)) is None

    world.now += 1
    world.reconcile()

    evaluation = evaluation_of(world, 1)
    assert sorted(evaluation.sites) == ["site-a", "site-b"]
    assert evaluation.missing == {"site-c": "DeadlineExceeded: not done within 10m; raise rounds.deadline"}

    world.settle()
    assert world.run.resource.status.history[1].updates == "1/3"
    assert sorted(world.backend.discarded) == ["toy-train-r2-site-b-a0", "toy-train-r2-site-c-a0"]


@pytest.mark.parametrize(("target", "end"), [(0.1, "Complete"), (0.9, "Failed")])
def test_a_lost_quorum_fails_the_run_only_after_the_last_round_is_evaluated(tmp_path: Path, target: float, end: str) -> None:
    trainer = failing(TrainTask, TrainResult, site="site-c", round=2)
    rounds = {"count": 9, "target": {"metric": "accuracy", "value": target}}
    world = World(a_run(sites={"quorum": 1.0}, rounds=rounds), tmp_path, trainer)
    world.work_until("train-r2")
    world.backend.work("toy-train-r2-site-c-a0")
    world.reconcile()
    assert not world.conditions().keys() & {"Complete", "Failed"}

    for site in ("a", "b"):
        world.backend.evaluate(f"toy-train-r2-site-{site}-a0")
    world.settle()

    assert end in world.conditions()
    assert [entry.round for entry in world.run.resource.status.history] == [1]
    assert world.run.resource.status.history[0].metric == 0.1


@pytest.mark.parametrize("inline_sites", [50, 2], ids=["in the reconcile", "in a worker"])
@pytest.mark.parametrize(("target", "end"), [(0.1, "TargetReached"), (0.9, "QuorumOutOfReach")])
def test_a_quorum_that_is_lost_when_a_round_is_planned_fails_the_run_only_after_the_last_round_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, target: float, end: str, inline_sites: int
) -> None:
    monkeypatch.setattr(stages, "INLINE_SITES", inline_sites)
    rounds = {"count": 9, "target": {"metric": "accuracy", "value": target}}
    world = World(a_run(sites={"quorum": 1.0}, rounds=rounds, planning=SMALLER), tmp_path)
    world.work_until("train-r1")
    too_small = a_site("site-a", capacity={"memory": "10Mi"})
    world.run = replace(world.run, sites=tuple(too_small if site.name == "site-a" else site for site in world.run.sites))

    world.work_until("evaluate-r1")
    assert world.message("Progressing").startswith("0 of 3 sites done; round 2 needs 3 of 3 sites")
    world.settle()

    assert end in world.conditions().values()
    assert [(entry.round, entry.metric) for entry in world.run.resource.status.history] == [(1, 0.1)]


@pytest.mark.parametrize(("target", "end"), [(0.1, "TargetReached"), (0.9, "PlanningFailed")])
def test_so_does_a_plan_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, target: float, end: str) -> None:
    monkeypatch.setattr(stages, "INLINE_SITES", 2)
    rounds = {"count": 9, "attempts": 1, "target": {"metric": "accuracy", "value": target}}
    world = World(a_run(rounds=rounds), tmp_path)
    world.work_until("plan-r2")
    world.backend.kill("toy-plan-r2-a0")

    world.settle()

    assert end in world.conditions().values()
    assert [(entry.round, entry.metric) for entry in world.run.resource.status.history] == [(1, 0.1)]


def test_a_last_evaluation_that_ends_for_a_further_round_is_made_by_its_trainings(tmp_path: Path) -> None:
    """An edit of site-c is corrected while the others evaluate; their trainers say that they were terminated."""

    def trainer(task: Any, folder: Path) -> Any:
        is_wrong = isinstance(task, ProfileTask) and task.attempt == 1
        return a_failure(ProfileResult, task, FailureReason.BAD_DATA, "no such file") if is_wrong else good_trainer(task, folder)

    world = World(a_run(rounds={"count": 3, "deadline": "30m"}, sites={"quorum": 1.0}), tmp_path, trainer)
    world.work_until("aggregate-r2")
    world.backend.work("toy-aggregate-r2-a0")
    right = world.run.sites
    world.run = replace(world.run, sites=(*right[:2], a_site("site-c", nodeSelector={"pool": "wrong"})))
    ended = world.work_until("evaluate-r2")
    world.run = replace(world.run, sites=right)
    world.reconcile()
    for name in ended:
        perform(
            lambda task, _: a_failure(EvaluateResult, task, FailureReason.TERMINATED, "SIGTERM"), evaluation_task(world, name), tmp_path
        )
    world.settle()

    assert set(ended) <= set(world.backend.discarded)
    assert (sorted(evaluation_of(world, 2).sites), evaluation_of(world, 2).missing) == (list(SITES), {})
    assert world.conditions()["Complete"] == "RoundsCompleted"


def evaluation_task(world: World, job: str) -> EvaluateTask:
    return EvaluateTask.model_validate_json(world.backend.tasks[job])


def test_a_run_whose_sites_are_gone_fails_after_an_evaluation_that_says_so(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 9, "deadline": "10m"}), tmp_path)
    world.work_until("aggregate-r1")
    world.backend.work("toy-aggregate-r1-a0")
    world.run = replace(world.run, sites=())
    world.reconcile()
    assert world.store.read(names.round_evaluation(1)) is None, "they may come back"
    world.now += 601

    world.settle()

    assert world.conditions()["Failed"] == "NoSites"
    assert evaluation_of(world, 1).missing.keys() == set(SITES)


def test_the_sites_of_the_next_round_evaluate_and_the_status_names_them(tmp_path: Path) -> None:
    world = World(a_run(8, sites={"perRound": 3}, rounds={"count": 4}), tmp_path)
    world.settle()

    trained = {r: tuple(sorted(name.split("-r")[1][2:8] for name in world.backend.started if f"train-r{r}-" in name)) for r in range(1, 5)}
    evaluated = {entry.round: entry.evaluators for entry in world.run.resource.status.history}

    assert evaluated == {1: trained[2], 2: trained[3], 3: trained[4], 4: trained[4]}
    assert tuple(sorted(evaluation_of(world, 0).sites)) == trained[1]
    assert len(set(trained.values())) > 1


def test_without_a_choice_of_sites_the_status_names_no_evaluators(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.settle()

    assert [entry.evaluators for entry in world.run.resource.status.history] == [(), ()]


def test_after_a_suspension_a_site_that_evaluated_does_not_do_it_again(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r2")
    world.backend.evaluate("toy-train-r2-site-a-a0")
    running = world.run
    suspended = running.spec.model_copy(update={"suspend": True})
    world.run = replace(running, resource=running.resource.model_copy(update={"spec": suspended}))
    world.reconcile()
    world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": running.spec}))
    world.reconcile()

    assert {site: task_of(world, f"toy-train-r2-{site}-a0").evaluation is None for site in SITES} == {
        "site-a": True,
        "site-b": False,
        "site-c": False,
    }
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_count_that_is_lowered_in_the_middle_of_a_round_ends_it_and_only_missing_sites_evaluate_once_more(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 9}), tmp_path)
    training = world.work_until("train-r3")
    world.backend.evaluate("toy-train-r3-site-a-a0")
    edit(world, count=2)
    world.reconcile()

    assert world.backend.discarded == training
    assert [name for name in world.backend.started if "evaluate" in name] == ["toy-evaluate-r2-site-b-a0", "toy-evaluate-r2-site-c-a0"]

    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.round == 2
    assert sorted(evaluation_of(world, 2).sites) == list(SITES)


def test_a_count_that_is_raised_during_the_last_evaluation_goes_on_with_what_was_evaluated(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 1}), tmp_path)
    world.work_until("evaluate-r1")
    world.backend.work("toy-evaluate-r1-site-b-a0")
    edit(world, count=2)
    for _ in range(2):
        world.reconcile()

    assert {site: task_of(world, f"toy-train-r2-{site}-a0").evaluation is None for site in SITES} == {
        "site-a": False,
        "site-b": True,
        "site-c": False,
    }
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.round == 2


def test_a_site_that_goes_is_missing_from_the_evaluation_unless_it_sent_its_part(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.3}), tmp_path)
    world.work_until("train-r2")
    world.backend.evaluate("toy-train-r2-site-b-a0")
    world.run = replace(world.run, sites=world.run.sites[:1])
    world.settle()

    evaluation = evaluation_of(world, 1)
    assert sorted(evaluation.sites) == ["site-a", "site-b"]
    assert evaluation.missing["site-c"].startswith("SiteGone")
