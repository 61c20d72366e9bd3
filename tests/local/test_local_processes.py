"""Processes after the end of their operator; and the real trainer with the backend."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from workbench import Bench, Meet, OpenBench

from fedpipe_operator.backend import JobState
from fedpipe_operator.errors import UserError
from fedpipe_operator.local import LocalBackend, ProcessSettings

OPERATOR = """
    import json, sys, threading
    from pathlib import Path
    from fedpipe_operator.backend import Job, JobResources, TaskKind
    from fedpipe_operator.local import LocalBackend, ProcessSettings

    folder, stand_in, meeting = sys.argv[1:]
    backend = LocalBackend(Path(folder), max_concurrent=1, processes=ProcessSettings(trainer=(sys.executable, stand_in)))
    backend.start(Job(name="train-a", kind=TaskKind.TRAIN, site="a"), json.dumps({"meet": meeting}), JobResources())
    threading.Event().wait()
"""


def test_a_killed_operators_trainer_leaves_its_checkpoint_before_the_next_operator_begins(
    open_backend: OpenBench, meeting: Meet, tmp_path: Path
) -> None:
    at = meeting("at")
    stand_in = str(Path(__file__).with_name("stand_in_trainer.py"))
    arguments = [str(tmp_path / "run"), stand_in, str(at.path)]
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(OPERATOR), *arguments]) as operator:
        at.join()
        operator.send_signal(signal.SIGKILL)

    bench = open_backend()

    assert (bench.folder / "jobs/train-a/checkpoint").read_text() == "left in time"
    assert bench.states() == {}, "it must run again, from its checkpoint"


def test_a_backend_does_not_start_while_another_uses_the_folder(bench: Bench) -> None:
    with pytest.raises(UserError) as refusal:
        LocalBackend(bench.folder, max_concurrent=1, processes=ProcessSettings(grace_seconds=0.1))

    assert refusal.value.reason == "ProcessesRunning"


def test_a_damaged_record_is_a_user_error(open_backend: OpenBench) -> None:
    before = open_backend()
    before.start("train-a", "a")
    before.ended("train-a")
    before.backend.close()
    (before.folder / "jobs/train-a/exit.json").write_text("{}")

    with pytest.raises(UserError) as failure:
        open_backend()

    assert failure.value.reason == "JobUnreadable"
    assert "jobs/train-a/exit.json" in failure.value.message


def test_the_real_trainer_serves_the_backend(open_backend: OpenBench) -> None:
    bench = open_backend(processes=ProcessSettings())
    bench.start("train-a", "a", kind="train", schemaVersion=99)
    bench.start("evaluate-a", "a", kind="evaluate")

    newer_version, without_task = bench.ended("train-a"), bench.ended("evaluate-a")

    assert (newer_version.state, newer_version.exit_code, newer_version.reason) == (JobState.FAILED, 2, "BadTask")
    assert "schema version 99" in bench.log("train-a")
    assert (without_task.state, without_task.exit_code) == (JobState.FAILED, 2)
