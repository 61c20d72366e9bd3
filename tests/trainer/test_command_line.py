"""The trainer's process as a parent sees it: exit statuses, lines, logs, signals. No task here gets as far as torch."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedpipe_trainer import tasks
from fedpipe_trainer.contract import EvaluateTask, ExitCode, Failure, FailureReason, Outcome, parse_result, parse_task
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.workplace import Workplace

GOLDEN = Path(__file__).parents[1] / "contract" / "golden"


def command(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "fedpipe_trainer", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"schemaVersion": 2}', "schema version 2, this trainer reads 1"),
        (b"\xff", "codec can't decode"),
        (b"{", "Expecting property name"),
        (b'{"kind": "bake"}', "'bake' found using 'kind' does not match any of the expected tags"),
    ],
)
def test_a_task_that_cannot_be_read_ends_with_2_and_a_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "task.json").write_bytes(content)

    ended = command(tmp_path / "task.json")

    assert ended.returncode == ExitCode.BAD_TASK
    assert said in ended.stderr
    assert f"the task file {tmp_path}/task.json cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_wrong_url_in_a_task_is_not_repeated_in_the_log(tmp_path: Path) -> None:
    document = json.loads((GOLDEN / "task-train.json").read_text()) | {"adapter": "ftp://store?signature=5ec2e7"}
    (tmp_path / "task.json").write_text(json.dumps(document))

    ended = command(tmp_path / "task.json")

    assert ended.returncode == ExitCode.BAD_TASK
    assert "train.adapter: String should match pattern" in ended.stderr
    assert "5ec2e7" not in ended.stderr


def test_a_command_line_without_a_task_is_refused() -> None:
    assert command().returncode == 2


def test_a_serving_trainer_names_each_task_that_ended_and_logs_beside_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "task.json").write_text(f'{{"kind": "{name}"}}')
    paths = [str(tmp_path / name / "task.json") for name in ("one", "two", "missing")]

    ended = subprocess.run(
        [sys.executable, "-m", "fedpipe_trainer", "--serve"], input="\n".join(paths) + "\n", capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [{"ended": path, "exitCode": 2} for path in paths]
    assert "'one'" in (tmp_path / "one" / "log").read_text()
    assert "'two'" not in (tmp_path / "one" / "log").read_text()
    assert "'two'" in (tmp_path / "two" / "log").read_text()
    assert f"the log beside {paths[2]} cannot be written" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_trainer_that_is_asked_to_stop_ends_at_once(tmp_path: Path, another_trainer: Any, number: signal.Signals) -> None:
    (tmp_path / "task.json").write_text("{}")
    another_trainer.process.stdin.write(f"{tmp_path}/task.json\n")
    another_trainer.process.stdin.flush()
    another_trainer.wait()

    another_trainer.process.send_signal(number)

    assert another_trainer.process.wait() == 143


@pytest.fixture
def task(tmp_path: Path) -> EvaluateTask:
    task = parse_task((GOLDEN / "task-evaluate.json").read_text())
    assert isinstance(task, EvaluateTask)
    return task.model_copy(update={"result": (tmp_path / "result.json").as_uri()})


def perform_with(recipe: Any, task: EvaluateTask, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ExitCode, Failure]:
    """Do the task with this function in the place of its recipe; the exit status and the failure in the result."""
    module = ModuleType("a_recipe")
    module.run = recipe  # type: ignore[attr-defined]  # that makes it a recipe
    monkeypatch.setitem(sys.modules, "a_recipe", module)
    monkeypatch.setitem(tasks._RECIPES, "evaluate", "a_recipe")
    (folder / "task.json").write_text(task.to_json())

    code = tasks.perform(folder / "task.json", settings=Settings(cache=folder), say=lambda _: None, stop_requested=lambda: False)

    result = parse_result((folder / "result.json").read_text())
    assert (result.kind, result.outcome, result.site, result.round) == ("evaluate", Outcome.FAILED, task.site, task.round)
    assert result.failure is not None
    return code, result.failure


def test_a_failed_task_reports_its_reason(task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_task: EvaluateTask, _workplace: Workplace) -> None:
        raise TaskFailed(FailureReason.BAD_MODEL, "no tokenizer" * 1000)

    code, failure = perform_with(fails, task, tmp_path, monkeypatch)

    assert (code, failure.reason) == (ExitCode.BAD_MODEL, FailureReason.BAD_MODEL)
    assert failure.message == ("no tokenizer" * 1000)[:4096]


def test_a_stopped_task_reports_how_far_it_was(task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(_task: EvaluateTask, _workplace: Workplace) -> None:
        raise Terminated("after step 3 of 9")

    code, failure = perform_with(stops, task, tmp_path, monkeypatch)

    assert (code, failure.reason) == (ExitCode.TERMINATED, FailureReason.TERMINATED)
    assert failure.message.endswith("as it was asked to: after step 3 of 9")


def test_memory_that_ran_out_has_a_status_of_its_own(task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grows(_task: EvaluateTask, _workplace: Workplace) -> None:
        bytearray(1 << 62)

    assert perform_with(grows, task, tmp_path, monkeypatch)[0] is ExitCode.OUT_OF_MEMORY


def test_what_nobody_foresaw_is_traced_in_the_log_and_says_no_more_than_where(
    task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(_task: EvaluateTask, _workplace: Workplace) -> None:
        raise KeyError("a patient's name")

    code, failure = perform_with(breaks, task, tmp_path, monkeypatch)

    assert (code, failure.reason) == (ExitCode.UNEXPECTED, FailureReason.UNEXPECTED)
    assert failure.message.startswith("KeyError in breaks (test_command_line.py:")
    assert "patient" not in failure.message
    assert "patient" in caplog.text


def test_the_scratch_folder_is_gone_after_the_task(task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def litters(_task: EvaluateTask, workplace: Workplace) -> None:
        seen.append(workplace.folder)
        (workplace.folder / "litter").touch()
        raise Terminated

    perform_with(litters, task, tmp_path, monkeypatch)

    assert not seen[0].exists()


FIRST_IMPORT = """
import gc, sys
from fedpipe_trainer import tasks

sys.path.insert(0, "{folder}")
tasks._RECIPES["evaluate"] = "a_recipe"
sys.modules |= {already}
try:
    said = tasks._recipe("evaluate").COLLECTS
except ImportError as error:
    said = error
print(said, gc.isenabled(), gc.get_freeze_count() > 0)
"""


@pytest.mark.parametrize(
    ("recipe", "already", "said"),
    [
        ("import gc; COLLECTS = gc.isenabled()", "{}", "False True True"),
        ("import gc; COLLECTS = gc.isenabled()", "{'torch': gc}", "True True False"),
        ("import no_such_library", "{}", "No module named 'no_such_library' True False"),
    ],
    ids=["the first", "a later one", "one that cannot be imported"],
)
def test_the_garbage_collector_passes_over_what_the_first_recipe_imports_and_is_at_work_afterwards(
    tmp_path: Path, recipe: str, already: str, said: str
) -> None:
    (tmp_path / "a_recipe.py").write_text(recipe)

    done = subprocess.run(
        [sys.executable, "-c", FIRST_IMPORT.format(folder=tmp_path, already=already)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == said
