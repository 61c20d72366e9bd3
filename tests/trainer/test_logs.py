"""The trainer's log: as JSON each line says which task it is about, and neither form has a secret or the data's text."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from fedpipe_trainer import logs
from fedpipe_trainer.contract import Progress, TrainTask, parse_task

CANARY = "c4n4ry"
GOLDEN = Path(__file__).parents[1] / "contract" / "golden"
FORMATTERS = [pytest.param(logs.JsonFormatter, id="json"), pytest.param(logs.PlainFormatter, id="plain")]


@pytest.fixture
def task() -> TrainTask:
    task = parse_task((GOLDEN / "task-train.json").read_text())
    assert isinstance(task, TrainTask)
    return task


class Lines(logging.Handler):
    """Keeps the lines that a formatter makes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def lines_of(write: Callable[[logging.Logger], object], formatter: logging.Formatter) -> list[str]:
    """What is logged when this writes to a logger of the trainer."""
    logger, handler = logging.getLogger("fedpipe_trainer.logs"), Lines(formatter)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        write(logger)
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    return handler.lines


def test_a_line_as_json_is_about_its_task_whichever_thread_writes_it(task: TrainTask) -> None:
    def write(logger: logging.Logger) -> None:
        with logs.about(task):
            logger.info("it trains")
            thread = Thread(target=lambda: logger.warning("a thread's"))
            thread.start()
            thread.join()
        logger.info("between two tasks")

    one, of_thread, other = map(json.loads, lines_of(write, logs.JsonFormatter()))

    expected = {
        "namespace": task.run.namespace,
        "run": task.run.name,
        "uid": task.run.uid,
        "round": task.round,
        "site": task.site,
        "attempt": task.attempt,
        "task": "train",
    }
    assert {name: one[name] for name in logs.FIELDS} == {name: of_thread[name] for name in logs.FIELDS} == expected
    assert (one["severity"], one["logger"], one["message"]) == ("info", "fedpipe_trainer.logs", "it trains")
    assert one["timestamp"].endswith("Z")
    assert list(other) == ["timestamp", "severity", "logger", "message"]


def test_progress_is_a_line_with_its_figures(task: TrainTask) -> None:
    def write(_logger: logging.Logger) -> None:
        with logs.about(task):
            progress = logs.ProgressLog()
            progress.write(Progress(phase="train", step=3, steps=9, loss=0.5, tokens_per_second=88.0))
            progress.write(Progress(phase="load"))

    trained, loaded = map(json.loads, lines_of(write, logs.JsonFormatter()))

    assert {name: trained[name] for name in ("message", "step", "steps", "loss", "tokensPerSecond")} == {
        "message": "train 3/9",
        "step": 3,
        "steps": 9,
        "loss": 0.5,
        "tokensPerSecond": 88.0,
    }
    assert (loaded["message"], loaded["phase"], loaded["site"], "loss" in loaded) == ("load", "load", task.site, False)


def test_progress_is_written_every_15_seconds_and_where_a_phase_begins_and_ends() -> None:
    now = [0.0]

    def write(_logger: logging.Logger) -> None:
        progress = logs.ProgressLog(lambda: now[0])
        for step in range(1, 41):
            progress.write(Progress(phase="train", step=step, steps=40))
            now[0] += 1
        progress.write(Progress(phase="evaluate", step=1, steps=2))

    messages = [json.loads(line)["message"] for line in lines_of(write, logs.JsonFormatter())]

    assert messages == ["train 1/40", "train 16/40", "train 31/40", "train 40/40", "evaluate 1/2"]


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_no_line_has_a_query_of_a_url_or_the_message_of_an_exception(formatter: type[logging.Formatter]) -> None:
    def write(logger: logging.Logger) -> None:
        logger.warning("PUT http://minio:9000/b/k?X-Amz-Signature=%s failed", CANARY)
        logger.error("it fails", exc_info=ValueError(f"a cell with {CANARY}"))

    lines = lines_of(write, formatter())

    assert CANARY not in "".join(lines)
    assert "http://minio:9000/b/k?[hidden] failed" in lines[0]
    assert "ValueError" in lines[1]


def test_a_message_of_several_lines_is_one_line_as_json() -> None:
    assert "\n" not in lines_of(lambda logger: logger.info("%s", 'one\n{"severity": "error"}'), logs.JsonFormatter())[0]


CRASHES = """
import sys, threading
from fedpipe_trainer import logs
logs.configure(sys.argv[1])
thread = threading.Thread(target=lambda: int("c4n4ry"))
thread.start()
thread.join()
class Closed:
    def __del__(self):
        int("c4n4ry")
Closed()
int("c4n4ry")
"""


@pytest.mark.parametrize("log_format", ["json", "plain"])
def test_an_exception_that_nobody_handles_is_logged_without_its_message(log_format: str) -> None:
    ended = subprocess.run([sys.executable, "-c", CRASHES, log_format], capture_output=True, text=True, check=False)

    assert ended.returncode == 1
    assert "invalid literal" not in ended.stderr
    assert ended.stderr.count("ValueError") == 3
    if log_format == "json":
        severities = [json.loads(line)["severity"] for line in ended.stderr.splitlines()]
        assert severities == ["error", "error", "critical"]


def test_a_pod_writes_json_and_nothing_to_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPIPE_LOG_FORMAT", "json")
    document = json.loads((GOLDEN / "task-train.json").read_text()) | {"deadlineSeconds": -1}
    (tmp_path / "task.json").write_text(json.dumps(document))

    ended = subprocess.run([sys.executable, "-m", "fedpipe_trainer", tmp_path / "task.json"], capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "train.deadlineSeconds" in json.loads(ended.stderr)["message"]


def test_a_format_that_does_not_exist_is_refused_with_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPIPE_LOG_FORMAT", "xml")

    ended = subprocess.run([sys.executable, "-m", "fedpipe_trainer", tmp_path / "task.json"], capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert "FEDPIPE_LOG_FORMAT is 'xml': set it to json or plain" in ended.stderr
