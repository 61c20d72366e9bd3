"""What happens to a divided task when one of its processes ends: the whole task ends at once, with a reason, and nothing is left."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import torch
from toy_training import Q0, a_training_task, make_runtime

from fedpipe_trainer.contract import ExitCode, FailureReason, Outcome, ProfileTask, TrainTask, parse_result
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.parallel import Session, SessionRequest, WorkerGroup, exchange, open_session
from fedpipe_trainer.profiling.subject import Subject
from fedpipe_trainer.recipes import profile, train

Toy = Callable[[str], Path]
Children = Callable[[], set[psutil.Process]]
ENDED: Final = r"the process of device 1 was killed \(SIGKILL\).*raise capacity.memory of the EdgeSite"


@pytest.fixture
def task(toy: Toy, tmp_path: Path) -> TrainTask:
    """A task of two processes that takes minutes, and tells its result and its checkpoint."""
    urls = {name: (tmp_path / "store" / name).as_uri() for name in ("result", "checkpoint_write")}
    return a_training_task(toy("llama"), tmp_path, {Q0: 4}, processes=2, steps=100_000, **urls)


@pytest.fixture
def new_children() -> Children:
    """A function that returns the processes that the test started: this process has others, which fixtures of many tests serve from."""
    others = set(psutil.Process().children())
    return lambda: set(psutil.Process().children()) - others


def test_the_end_of_a_process_during_an_exchange_ends_the_task(
    task: TrainTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_children: Children
) -> None:
    workers: list[psutil.Process] = []
    original = exchange.add_gradients

    def kill_first(trainable: Mapping[str, Any]) -> Any:
        workers.extend(new_children())
        for worker in workers:
            worker.suspend()
        works = original(trainable)
        for worker in workers:
            worker.kill()
        return works

    monkeypatch.setattr(exchange, "add_gradients", kill_first)

    with pytest.raises(TaskFailed, match=ENDED) as failed:
        train.run(task, make_runtime(tmp_path / "scratch"))

    assert failed.value.reason is FailureReason.UNEXPECTED
    assert not failed.value.reason.exit_code.is_final
    assert len(workers) == 1
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    assert not torch.distributed.is_initialized()


@contextmanager
def training(task: TrainTask, folder: Path) -> Any:
    """The process of this task, which has done some steps, and its worker."""
    (folder / "task.json").write_text(task.to_json())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FEDPIPE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "fedpipe_trainer", str(folder / "task.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            next(line for line in process.stdout if json.loads(line).get("step", 0) > 2)
            (worker,) = psutil.Process(process.pid).children()
            yield process, worker
        finally:
            process.kill()


def read_to_the_end(process: "subprocess.Popen[str]") -> int:
    process.communicate()
    return process.returncode


def test_the_end_of_a_process_is_in_the_result_and_the_exit_status(task: TrainTask, tmp_path: Path) -> None:
    with training(task, tmp_path) as (process, worker):
        worker.kill()
        status = read_to_the_end(process)

    result = parse_result((tmp_path / "store" / "result").read_text())
    assert status == ExitCode.UNEXPECTED
    assert result.outcome is Outcome.FAILED
    assert result.failure is not None
    assert "the process of device 1 was killed (SIGKILL)" in result.failure.message


def test_a_request_to_stop_leaves_a_checkpoint_and_no_process(task: TrainTask, tmp_path: Path) -> None:
    with training(task, tmp_path) as (process, worker):
        worker.send_signal(signal.SIGTERM)  # it decides nothing: a request is the first process's business
        process.send_signal(signal.SIGTERM)
        status = read_to_the_end(process)

    assert status == ExitCode.TERMINATED
    assert (tmp_path / "store" / "checkpoint_write").is_file()
    assert not worker.is_running()


def test_that_a_worker_ends_after_a_request_to_stop_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closing(session: Session) -> None:
        del session
        raise TaskFailed(FailureReason.UNEXPECTED, "the process of device 1 ended with status 1")

    monkeypatch.setattr(Session, "close", closing)

    def stopped() -> None:
        with open_session(WorkerGroup(tmp_path, ()), SessionRequest(ranks={}, scales={}, seed=0), {}):
            raise TaskFailed(FailureReason.TERMINATED, "on request")

    with pytest.raises(TaskFailed) as failed:
        stopped()

    assert failed.value.reason is FailureReason.TERMINATED


def test_no_process_outlives_the_first(task: TrainTask, tmp_path: Path) -> None:
    with training(task, tmp_path) as (process, worker):
        process.kill()
        read_to_the_end(process)
        worker.wait(30)

    assert not worker.is_running()


def test_a_process_that_ends_while_a_site_is_profiled_says_nothing_about_bit_widths(
    task: TrainTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_children: Children
) -> None:
    measure = profile.measure_steps
    asked: list[Any] = []

    def kill_second(subject: Subject, *others: Any) -> Any:
        asked.append(subject.base.bits)
        if len(asked) == 2:
            for worker in new_children():
                worker.kill()
        return measure(subject, *others)

    monkeypatch.setattr(profile, "measure_steps", kill_second)
    fields = task.model_dump(include={"run", "site", "model", "result", "objective", "contributors", "data", "processes"})
    profiling = ProfileTask(**fields, bits=(32, 16), batch_sizes=(1,), importance="None")

    with pytest.raises(TaskFailed, match=ENDED) as failed:
        profile.measure(profiling, make_runtime(tmp_path / "scratch"), Path(task.model.source.removeprefix("file://")), 0.0)

    assert asked == [32, 16]
    assert failed.value.reason is FailureReason.UNEXPECTED
