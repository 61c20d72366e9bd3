"""The counters of runs and sites: what happened is counted once, however often it is found, and never by a later operator."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scrapes import Scrape, scrape_of
from stand_in_cluster import KubeWorld
from stand_in_runs import a_run
from trainer_results import a_failure, a_profile, an_update, good_trainer, path_of

from fedpipe_operator.cluster.api import RUNS
from fedpipe_operator.errors import TransientError
from fedpipe_operator.metrics.listener import Listener
from fedpipe_operator.rounds import Decision, Observed, Run
from fedpipe_trainer.contract import EvaluateTask, FailureReason, Measured, ProfileTask, TrainResult, TrainTask

COUNTERS = ("attempts_total", "updates_refused_total", "replans_total", "out_of_memory_total", "runs_finished_total")


class Repeated(Listener):
    """Hears of every reconcile three times, as if it had been repeated without anything new."""

    def run_reconciled(self, run: Run, observed: Observed, decision: Decision, jobs: Any) -> None:
        for _ in range(3):
            super().run_reconciled(run, observed, decision, jobs)

    def run_ended(self, run: Run) -> None:
        for _ in range(3):
            super().run_ended(run)


def counts(scrape: Scrape) -> dict[Any, float]:
    """What the counters of runs and sites say, without those at 0."""
    return {key: value for key, value in scrape.values.items() if key[0] in COUNTERS and value}


def a_world(folder: Path, trainer: Any = good_trainer, run: Run | None = None, listen: Callable[..., Listener] = Listener) -> KubeWorld:
    world = KubeWorld(folder, run or a_run(), trainer)
    world.observer = listen(world.clock)
    world.restart()
    return world


def settled(world: KubeWorld) -> Scrape:
    """A scrape after the run's end, and two reconciles more."""
    world.settle()
    world.reconcile()
    world.reconcile()
    return scrape_of(world)


def test_every_attempt_of_a_run_is_counted_with_its_task(tmp_path: Path) -> None:
    scrape = settled(a_world(tmp_path))

    assert scrape.by("task", "attempts_total") == {"profile": 3, "train": 6, "evaluate": 3, "aggregate": 2, "dry-export": 1, "export": 1}
    assert scrape.by("reason", "attempts_total") == {"Completed": 16}
    assert scrape.by("site", "attempts_total") == {"": 4, "site-a": 4, "site-b": 4, "site-c": 4}
    assert scrape.by("reason", "runs_finished_total", result="complete") == {"RoundsCompleted": 1}


def test_a_reconcile_that_is_repeated_counts_nothing_again(tmp_path: Path) -> None:
    once = settled(a_world(tmp_path / "once", refused_at_the_gate("site-b")))
    often = settled(a_world(tmp_path / "often", refused_at_the_gate("site-b"), listen=Repeated))

    assert counts(once) == counts(often)


def refused_at_the_gate(site: str) -> Any:
    """A trainer whose updates of this site have a value that is not a number."""

    def trainer(task: Any, folder: Path) -> Any:
        if not isinstance(task, TrainTask) or task.site != site:
            return good_trainer(task, folder)
        return _spoilt(task, folder)

    return trainer


def _spoilt(task: TrainTask, folder: Path) -> TrainResult:
    result, file = an_update(task, folder), path_of(task.adapter)
    tensors = load_file(file)
    name = min(tensors)
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, file)
    data = file.read_bytes()
    assert result.adapter is not None
    artifact = result.adapter.model_copy(update={"size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return result.model_copy(update={"adapter": artifact})


def test_an_update_that_the_gate_refuses_is_counted_in_each_round(tmp_path: Path) -> None:
    scrape = settled(a_world(tmp_path, refused_at_the_gate("site-b"), a_run(sites={"quorum": 0.6})))

    assert scrape.by("reason", "updates_refused_total") == {"NotFinite": 2}
    assert scrape.by("reason", "attempts_total", site="site-b", task="train") == {"Completed": 2}, "its work was done"


def test_a_result_that_is_refused_at_first_sight_is_an_attempt_that_ended_so(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        result = good_trainer(task, folder)
        is_wrong = isinstance(task, TrainTask) and (task.site, task.round) == ("site-b", 1)
        return result.model_copy(update={"steps": result.steps + 1}) if is_wrong else result

    scrape = settled(a_world(tmp_path, trainer, a_run(sites={"quorum": 0.6})))

    assert scrape.by("reason", "updates_refused_total") == {"WrongSteps": 1}
    assert scrape.by("reason", "attempts_total", site="site-b", task="train") == {"WrongSteps": 1, "Completed": 1}


def test_attempts_that_ran_out_of_memory_are_counted_by_task(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, TrainTask) and (task.site, task.round, task.attempt) == ("site-a", 1, 0):
            return a_failure(TrainResult, task, FailureReason.OUT_OF_MEMORY, "at its limit")
        return good_trainer(task, folder)

    scrape = settled(a_world(tmp_path, trainer, a_run(sites={"quorum": 0.6})))

    assert scrape.by("task", "out_of_memory_total") == {"train": 1}
    assert scrape.by("reason", "attempts_total", site="site-a", task="train")["OutOfMemory"] == 1


def test_an_attempt_that_left_no_result_has_the_reason_of_its_job(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        is_killed = isinstance(task, TrainTask) and (task.site, task.round, task.attempt) == ("site-c", 2, 0)
        return None if is_killed else good_trainer(task, folder)

    scrape = settled(a_world(tmp_path, trainer))

    assert scrape.by("reason", "attempts_total", site="site-c", task="train") == {"Completed": 2, "BackoffLimitExceeded": 1}


def test_a_site_that_is_late_has_exceeded_the_deadline_once(tmp_path: Path) -> None:
    world = a_world(tmp_path, run=a_run(sites={"quorum": 0.6}))
    world.work_until("train-r1-site-c")
    world.now += 601
    for _ in range(4):
        world.reconcile()
    scrape = scrape_of(world)

    assert scrape.by("reason", "attempts_total", site="site-c", task="train") == {"DeadlineExceeded": 1}


def test_the_jobs_that_a_suspension_ends_are_no_attempts_that_ended(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.work_until("train-r1")
    world.api.merge(RUNS, "default", "toy", {"spec": {"suspend": True}})
    world.reconcile()
    world.reconcile()
    scrape = scrape_of(world)

    assert world.active_jobs() == []
    assert scrape.by("task", "attempts_total") == {"profile": 3, "dry-export": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, float]:
    """What an operator counts that sees a whole run."""
    return counts(settled(a_world(tmp_path_factory.mktemp("whole"))))


@pytest.mark.parametrize("word", ["train-r1", "train-r2", "evaluate-r2", "export"])
def test_an_operator_that_starts_in_the_middle_of_a_run_counts_what_happens_from_then_on(
    tmp_path: Path, whole: dict[Any, float], word: str
) -> None:
    world = a_world(tmp_path)
    world.work_until(word)
    first = scrape_of(world)
    world.now += 1
    world.observer = Listener(world.clock)
    world.restart()
    second = settled(world)

    together = {key: counts(first).get(key, 0) + counts(second).get(key, 0) for key in counts(first).keys() | counts(second).keys()}
    assert together == whole


def test_an_operator_that_starts_anew_before_every_reconcile_counts_nothing_twice(tmp_path: Path, whole: dict[Any, float]) -> None:
    world, together = a_world(tmp_path), dict.fromkeys(whole, 0.0)
    for _ in range(200):
        world.observer = Listener(world.clock)
        world.restart()
        world.reconcile()
        for key, value in counts(scrape_of(world)).items():
            together[key] += value
        if world.conditions().get("Complete"):
            break
        for name in world.active_jobs()[:1]:
            world.work(name)
        world.await_workers()

    assert world.conditions().get("Complete")
    assert {key: value for key, value in together.items() if value > whole[key]} == {}


def test_a_run_that_was_over_before_the_operator_started_did_not_finish_again(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.settle()
    world.observer = Listener(world.clock)
    world.restart()
    world.reconcile()

    assert scrape_of(world).by("reason", "runs_finished_total") == {}


def test_the_end_of_a_run_counts_although_the_answer_to_its_status_write_was_lost(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    write, lost = world.api.replace_status, []

    def write_and_lose(kind: Any, namespace: str, name: str, status: Any) -> Any:
        written = write(kind, namespace, name, status)
        if kind is RUNS and not lost and any((one["type"], one["status"]) == ("Complete", "True") for one in status["conditions"]):
            lost.append("once")
            raise TransientError("ApiUnavailable", "no answer")
        return written

    world.api.replace_status = write_and_lose  # type: ignore[method-assign]
    scrape = settled(world)

    assert lost == ["once"]
    assert scrape.by("reason", "runs_finished_total") == {"RoundsCompleted": 1}


def test_bytes_and_energy_are_those_of_the_attempts_that_ended_and_an_evaluation_within_a_training_adds_nothing(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        match task:
            case ProfileTask():
                result: Any = a_profile(task)
            case TrainTask():
                result = an_update(task, folder, energy_joules=12.5)
            case _:
                result = good_trainer(task, folder)
        uploaded = 1000 if isinstance(task, EvaluateTask) and task.round < 2 else 10
        return result.model_copy(update={"measured": Measured(uploaded_bytes=uploaded, downloaded_bytes=3)})

    scrape = settled(a_world(tmp_path, trainer))
    of = {"namespace": "default", "run": "toy", "site": "site-a"}

    assert scrape.value("site_transferred_bytes_total", **of, direction="up") == 40, "profile, two trainings, the last evaluation"
    assert scrape.value("site_transferred_bytes_total", **of, direction="down") == 12
    assert scrape.value("site_energy_joules_total", **of) == 25


def test_a_counter_with_known_labels_begins_with_zero_so_that_its_first_increment_is_seen(tmp_path: Path) -> None:
    world = a_world(tmp_path)
    world.reconcile()
    scrape = scrape_of(world)

    assert scrape.value("updates_refused_total", namespace="default", reason="NotFinite") == 0
    assert scrape.value("runs_finished_total", namespace="default", result="failed", reason="QuorumOutOfReach") == 0
    assert scrape.value("out_of_memory_total", namespace="default", task="train") == 0
    assert scrape.value("replans_total", namespace="default", reason="StepsOff") == 0
