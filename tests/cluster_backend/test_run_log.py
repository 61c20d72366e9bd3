"""The log of a run: one line for each stage of a healthy one, none of them again in the next reconcile, and no secret."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in_cluster import KubeWorld
from stand_in_runs import a_run
from trainer_results import a_failure, good_trainer

from fedpipe_operator import logs
from fedpipe_operator.cluster.api import RUNS
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_trainer.contract import FailureReason, ProfileResult, ProfileTask, TrainResult, TrainTask


class Log(logging.Handler):
    """The operator's log as it is written, as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def messages(self) -> list[str]:
        """The messages, each with the site that its line is about."""
        return [" ".join([line["message"], *([line["site"]] if "site" in line else [])]) for line in self.lines]


@pytest.fixture
def log() -> Iterator[Log]:
    """What the operator logs."""
    found, operator = Log(), logging.getLogger("fedpipe_operator")
    operator.addHandler(found)
    level = operator.level
    operator.setLevel(logging.INFO)  # an assigned level would leave what loggers remember of the last one
    yield found
    operator.removeHandler(found)
    operator.setLevel(level)


HEALTHY = [
    "profile received site-a",
    "profile received site-b",
    "profile received site-c",
    "3 sites profiled",
    "round 1 planned for 3 sites; it needs 3 updates",
    "export tried",
    "training of round 1 started at 3 sites",
    "update received site-a",
    "update received site-b",
    "update received site-c",
    "the base evaluated by 3 sites: accuracy 0.0 %",
    "round 1 aggregated: 3 updates",
    "round 2 planned for 3 sites; it needs 3 updates",
    "training of round 2 started at 3 sites",
    "update received site-a",
    "update received site-b",
    "update received site-c",
    "round 1 evaluated by 3 sites: accuracy 10.0 %",
    "round 2 aggregated: 3 updates",
    "round 2 evaluated by 3 sites: accuracy 20.0 %",
    "exported",
    "complete: RoundsCompleted: after round 2",
]


def test_a_healthy_run_writes_one_line_at_each_stage(tmp_path: Path, log: Log) -> None:
    world = KubeWorld(tmp_path)
    world.settle()
    world.reconcile()

    assert log.messages() == HEALTHY
    assert {line["severity"] for line in log.lines} == {"info"}
    for line in log.lines:
        assert (line["namespace"], line["run"], line["uid"]) == ("default", "toy", "uid-1")
    received = [line for line in log.lines if line["message"] == "update received"]
    assert [(line["round"], line["attempt"]) for line in received] == [(1, 0)] * 3 + [(2, 0)] * 3


def test_no_line_is_repeated_by_further_reconciles(tmp_path: Path, log: Log) -> None:
    world = KubeWorld(tmp_path)
    world.work_until("train-r1")
    world.work("toy-train-r1-site-a-a0")
    world.reconcile()
    before = log.messages()
    for _ in range(5):
        world.now += 60
        world.reconcile()

    assert log.messages() == before
    assert before[-1] == "update received site-a"


def test_a_new_operator_says_that_it_took_the_run_up_and_repeats_nothing(tmp_path: Path, log: Log) -> None:
    world = KubeWorld(tmp_path)
    world.work_until("train-r2")
    before = log.messages()
    world.restart()
    world.settle()

    assert log.messages()[len(before)] == "taken up by this operator"
    assert log.messages()[: len(before)] + log.messages()[len(before) + 1 :] == HEALTHY


def test_profiles_are_told_once_though_each_plan_reads_them_again_also_by_a_new_operator(tmp_path: Path, log: Log) -> None:
    world = KubeWorld(tmp_path, a_run(rounds={"count": 3}))
    world.work_until("train-r2")
    world.restart()
    world.settle()

    assert [one for one in log.messages() if one.startswith("profile")] == HEALTHY[:3]


def test_a_profile_that_failed_is_a_warning_once_though_each_plan_reads_it_again(tmp_path: Path, log: Log) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == "site-b":
            return a_failure(ProfileResult, task, FailureReason.BAD_DATA, "c4n4ry")
        return good_trainer(task, folder)

    world = KubeWorld(tmp_path, a_run(rounds={"count": 3}, sites={"quorum": 0.5}), trainer)
    world.settle()

    assert [line["message"] for line in log.lines if line.get("site") == "site-b"] == ["no profile: BadData"]


def test_a_suspension_is_one_line_each_time(tmp_path: Path, log: Log) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    for suspend in (True, True, False, True):
        body = world.body()
        body["spec"]["suspend"] = suspend
        world.api._put(RUNS, "default", "toy", body)
        world.reconcile()

    assert [one for one in log.messages() if one.startswith("suspended")] == [
        "suspended: SuspendedBySpec: set spec.suspend to false to continue in the same round"
    ] * 2


def test_a_failed_training_is_a_warning_with_its_reason_and_not_its_message_and_a_retry_a_line(tmp_path: Path, log: Log) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, TrainTask) and task.site == "site-b" and task.attempt == 0:
            return a_failure(TrainResult, task, FailureReason.TRANSFER_FAILED, "c4n4ry")
        return good_trainer(task, folder)

    world = KubeWorld(tmp_path, a_run(rounds={"count": 1}), trainer)
    world.settle()
    told = [(line["severity"], line["message"], line.get("attempt")) for line in log.lines if line.get("site") == "site-b"]

    assert told == [
        ("info", "profile received", 0),
        ("warning", "no update: TransferFailed", 0),
        ("info", "training of round 1 started again", 1),
        ("info", "update received", 1),
    ]
    assert "c4n4ry" not in json.dumps(log.lines)


def test_a_run_that_is_blocked_says_why_without_the_query_of_a_url(tmp_path: Path, log: Log) -> None:
    world = KubeWorld(tmp_path)
    world.stores.trouble = UserError("StoreDenied", "GET http://minio:9000/fedpipe/plan.json?X-Amz-Signature=c4n4ry: 403")
    with pytest.raises(TransientError):
        world.reconcile()

    assert [line["message"] for line in log.lines] == ["blocked: StoreDenied: GET http://minio:9000/fedpipe/plan.json?[hidden] 403"]


def test_the_log_has_no_url_of_a_task(tmp_path: Path, log: Log) -> None:
    world = KubeWorld(tmp_path)
    world.settle()

    assert not re.search(r"\w+://", json.dumps(log.lines))
