"""A round of many sites is planned by a job instead of the reconcile: the same plan, waited for, tried again, and its errors told."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import World, a_run, a_site
from trainer_results import a_failure, a_profile, good_trainer

from fedpipe_operator import names
from fedpipe_operator.api.documents import read_yaml
from fedpipe_operator.api.finetune import FederatedFineTune
from fedpipe_operator.backend import JobState
from fedpipe_operator.reconcile.planning import PlanningTask, plan_round_of
from fedpipe_operator.rounds import stages
from fedpipe_trainer.contract import FailureReason, ProfileResult, ProfileTask

EVERY_FIELD = Path(__file__).parents[1] / "api" / "every_field.yaml"


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than two sites are many."""
    monkeypatch.setattr(stages, "INLINE_SITES", 2)


def plan_bytes(world: World, round_: int) -> bytes | None:
    return world.store.read(names.round_plan(round_))


def lose(world: World, job: str, reason: str, exit_code: int) -> None:
    """Let the planning job end without a plan."""
    world.backend.jobs[job] = replace(
        world.backend.jobs[job], state=JobState.FAILED, exit_code=exit_code, reason=reason, message="the last line"
    )


def without_profile(site: str) -> Any:
    """A trainer that cannot profile this site."""

    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == site:
            return a_failure(ProfileResult, task, FailureReason.BAD_MODEL, "no tokenizer.json in the model's folder")
        return good_trainer(task, folder)

    return trainer


def test_up_to_fifty_sites_are_planned_in_the_reconcile_and_more_by_a_job(tmp_path: Path) -> None:
    def started(count: int) -> list[str]:
        fleet = [a_site(f"site-{index:02}") for index in range(count)]
        world = World(a_run(fleet, rounds={"count": 1}), tmp_path / str(count))
        world.work_until("train-r1" if count == 50 else "plan-r1")
        return [name for name in world.backend.started if "plan" in name]

    assert (started(50), started(51)) == ([], ["toy-plan-r1-a0"])


def test_a_plan_has_the_same_bytes_wherever_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plans(folder: str, inline: int) -> list[bytes | None]:
        monkeypatch.setattr(stages, "INLINE_SITES", inline)
        world = World(a_run(4, rounds={"count": 3}, sites={"quorum": 0.5}), tmp_path / folder, without_profile("site-b"))
        world.settle()
        assert ("toy-plan-r3-a0" in world.backend.started) is (inline == 2)
        return [plan_bytes(world, round_) for round_ in (1, 2, 3)]

    in_reconcile, in_worker = plans("reconcile", 50), plans("worker", 2)

    assert None not in in_reconcile
    assert in_worker == in_reconcile


@pytest.mark.usefixtures("many")
def test_the_reconcile_waits_for_the_plan_and_says_so(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("plan-r1")
    world.reconcile()

    assert world.conditions()["Progressing"] == "Planning"
    assert world.message("Progressing") == "round 1, 3 sites"
    assert "Planned" not in world.conditions()
    assert world.reconcile().actions == ()
    assert plan_bytes(world, 1) is None

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [name for name in world.backend.started if "plan" in name] == ["toy-plan-r1-a0", "toy-plan-r2-a0"]


@pytest.mark.usefixtures("many")
def test_an_operator_restarted_at_every_reconcile_ends_with_the_same_bytes(tmp_path: Path) -> None:
    undisturbed, disturbed = World(a_run(), tmp_path / "one"), World(a_run(), tmp_path / "two")
    undisturbed.settle()

    for _ in range(500):
        disturbed.restart()
        disturbed.reconcile()
        if active := disturbed.backend.active_jobs():
            disturbed.backend.work(active[-1])
        if "Complete" in disturbed.conditions():
            break

    assert disturbed.final_adapter() == undisturbed.final_adapter()
    assert plan_bytes(disturbed, 2) == plan_bytes(undisturbed, 2)


@pytest.mark.usefixtures("many")
def test_a_worker_that_was_killed_is_tried_again(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("plan-r1")
    lose(world, "toy-plan-r1-a0", "Killed", 137)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert "toy-plan-r1-a1" in world.backend.started


@pytest.mark.usefixtures("many")
def test_a_plan_that_every_attempt_fails_to_make_fails_the_run_with_the_workers_words(tmp_path: Path) -> None:
    world = World(a_run(rounds={"attempts": 2}), tmp_path)
    for attempt in (0, 1):
        world.work_until(f"plan-r1-a{attempt}")
        lose(world, f"toy-plan-r1-a{attempt}", "PlanningFailed", 1)
    world.reconcile()

    assert world.conditions()["Failed"] == "PlanningFailed"
    assert world.message("Failed") == "PlanningFailed: the last line"
    assert [event.reason for event in world.events if event.warning] == ["PlanningFailed"]


@pytest.mark.usefixtures("many")
def test_a_plan_that_is_not_made_by_the_deadline_fails_the_run(tmp_path: Path) -> None:
    world = World(a_run(rounds={"deadline": "10m"}), tmp_path)
    world.work_until("plan-r1")
    world.now += 600
    world.reconcile()

    assert world.message("Failed") == "DeadlineExceeded: not done within 10m; raise rounds.deadline"
    assert world.backend.discarded == ["toy-plan-r1-a0"]


def labels_of_their_own(task: Any, folder: Path) -> Any:
    """A trainer whose sites have no label in common."""
    return a_profile(task, labels=(task.site, "-")) if isinstance(task, ProfileTask) else good_trainer(task, folder)


@pytest.mark.parametrize(
    ("spec", "trainer", "reason"),
    [
        ({}, good_trainer, "QuorumOutOfReach"),
        ({"sites": {"quorum": 0.3}, "aggregation": {"rule": "TrimmedMean"}}, good_trainer, "RuleOutOfReach"),
        ({"task": {"type": "SequenceClassification"}}, labels_of_their_own, "TooFewLabels"),
    ],
    ids=["quorum", "rule", "labels"],
)
def test_a_round_that_cannot_be_planned_has_the_same_reason_and_message_wherever_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any], trainer: Any, reason: str
) -> None:
    fleet = [a_site("big"), a_site("small-1", capacity={"memory": "64Mi"}), a_site("small-2", capacity={"memory": "64Mi"})]

    def message(folder: str, inline: int) -> str:
        monkeypatch.setattr(stages, "INLINE_SITES", inline)
        world = World(a_run(fleet, **spec), tmp_path / folder, trainer)
        world.settle()
        assert world.conditions()["Failed"] == reason
        return world.message("Failed")

    assert message("worker", 2) == message("reconcile-again", 50)


@pytest.mark.usefixtures("many")
def test_a_site_that_joins_while_the_round_is_planned_is_profiled_and_planned_too(tmp_path: Path) -> None:
    world = World(a_run(3), tmp_path)
    world.work_until("plan-r1")
    world.run = replace(world.run, sites=a_run(4).sites)
    world.reconcile()

    assert world.backend.discarded == ["toy-plan-r1-a0"]

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert "toy-train-r1-site-d-a0" in world.backend.started


@pytest.mark.usefixtures("many")
def test_a_profile_that_arrives_after_the_job_was_started_does_not_count(tmp_path: Path) -> None:
    world = World(a_run(4, sites={"quorum": 0.5}), tmp_path, without_profile("site-b"))
    world.work_until("plan-r1")
    profile = world.store.read(names.profile_result("site-a", 0)) or b""
    world.store.write(names.profile_result("site-b", 0), profile.replace(b"site-a", b"site-b"))
    world.backend.work("toy-plan-r1-a0")
    world.reconcile()

    assert world.run.resource.status.excluded["site-b"] == "BadModel: no tokenizer.json in the model's folder"
    assert {plan.site for plan in world.run.resource.status.plans} == {"site-a", "site-c", "site-d"}


@pytest.mark.usefixtures("many")
def test_a_task_of_a_round_that_is_planned_already_writes_nothing(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("plan-r1")
    task = PlanningTask.model_validate_json(world.backend.tasks["toy-plan-r1-a0"])
    world.backend.work("toy-plan-r1-a0")
    before = plan_bytes(world, 1)
    for late in (False, True):
        if late:
            world.settle()  # the round is over
        plan_round_of(task.model_copy(update={"now": 1.0}), world.store)

        assert plan_bytes(world, 1) == before
    assert world.store.read(names.out_of_reach(1)) is None


def test_a_task_holds_every_field_of_a_run_and_of_its_sites() -> None:
    documents = [document.value for document in read_yaml(EVERY_FIELD.read_text(), "every_field.yaml")[0]]
    runs = [FederatedFineTune.model_validate(document) for document in documents if document["kind"] == "FederatedFineTune"]
    fields = {"store": {"kind": "directory", "root": "/store"}, "round": 1, "profiles": {}, "failed": {}, "now": 0.0}
    sites = [document for document in documents if document["kind"] == "EdgeSite"]

    for run in runs:
        task = PlanningTask.model_validate({**fields, "run": run, "sites": sites})
        assert PlanningTask.model_validate_json(task.to_json()) == task
