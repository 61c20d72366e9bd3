"""The trainer's process from outside: exit statuses, lines, logs, signals. Only one test imports torch."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fedpipe_trainer import device, tasks
from fedpipe_trainer.contract import EvaluateTask, ExitCode, Failure, FailureReason, Outcome, parse_result, parse_task
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.task_runtime import TaskRuntime

GOLDEN = Path(__file__).parents[1] / "contract" / "golden"


def command(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "fedpipe_trainer", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schemaVersion": 2}', "schema version 2, this trainer reads 1"),
        (b"\xff", "codec can't decode"),
        (b"{", "Expecting property name"),
        (b'{"kind": "bake"}', "'bake' found using 'kind' does not match any of the expected tags"),
    ],
)
def test_a_task_that_cannot_be_parsed_ends_with_status_2_and_a_message(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "task.json").write_bytes(content)

    ended = command(tmp_path / "task.json")

    assert ended.returncode == ExitCode.BAD_TASK
    assert message in ended.stderr
    assert f"the task file {tmp_path}/task.json cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_an_invalid_url_in_a_task_is_not_written_to_the_log(tmp_path: Path) -> None:
    document = json.loads((GOLDEN / "task-train.json").read_text()) | {"adapter": "ftp://store?signature=5ec2e7"}
    (tmp_path / "task.json").write_text(json.dumps(document))

    ended = command(tmp_path / "task.json")

    assert ended.returncode == ExitCode.BAD_TASK
    assert "train.adapter" in ended.stderr
    assert "String should match pattern '^(file|https?)://'" in ended.stderr
    assert "5ec2e7" not in ended.stderr


def test_a_command_line_without_a_task_is_refused() -> None:
    assert command().returncode == 2


def test_a_serving_trainer_reports_each_task_that_ended_and_logs_beside_its_file(tmp_path: Path) -> None:
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
    assert f"cannot open the log beside {paths[2]}" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_trainer_ends_at_once_on_a_signal(tmp_path: Path, another_trainer: Any, number: signal.Signals) -> None:
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


def perform_with(
    recipe: Any, task: EvaluateTask, folder: Path, monkeypatch: pytest.MonkeyPatch, *, accelerator: str = ""
) -> tuple[ExitCode, Failure]:
    """Perform the task with this function as its recipe, in a pod with this accelerator; the exit status and the failure in the result."""
    module = ModuleType("a_recipe")
    module.run = recipe  # type: ignore[attr-defined]  # a recipe is a module with this function
    monkeypatch.setitem(sys.modules, "a_recipe", module)
    monkeypatch.setitem(tasks._RECIPES, "evaluate", "a_recipe")
    (folder / "task.json").write_text(task.to_json())

    settings = Settings(cache=folder, accelerator=accelerator)
    code = tasks.perform(folder / "task.json", settings=settings, write_progress=lambda _: None, stop_requested=lambda: False)

    result = parse_result((folder / "result.json").read_text())
    assert (result.kind, result.outcome, result.site, result.round) == ("evaluate", Outcome.FAILED, task.site, task.round)
    assert result.failure is not None
    return code, result.failure


@pytest.mark.parametrize("accelerator", ["", "nvidia.com/gpu"])
def test_a_pod_that_claims_a_gpu_never_trains_on_the_cpu(
    task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    def reached(_task: EvaluateTask, _runtime: TaskRuntime) -> None:
        raise TaskFailed(FailureReason.BAD_DATA, "the recipe was reached")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    code, failure = perform_with(reached, task, tmp_path, monkeypatch, accelerator=accelerator)

    assert (code, failure.reason) == ((ExitCode.NO_ACCELERATOR, "NoAccelerator") if accelerator else (ExitCode.BAD_DATA, "BadData"))
    assert ("remove capacity.accelerator from the EdgeSite" in failure.message) is bool(accelerator)


@pytest.mark.parametrize(("resource", "processes"), [("nvidia.com/gpu", 1), ("nvidia.com/gpu", 2), ("", 2)])
def test_a_pod_that_claims_more_gpus_than_it_sees_trains_on_none_of_them(
    monkeypatch: pytest.MonkeyPatch, resource: str, processes: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if not resource or processes == 1:
        tasks._require_accelerator(resource, processes)
        return

    with pytest.raises(
        TaskFailed, match=r"claims 2 nvidia.com/gpu, and PyTorch \S+ sees 1 GPU: .*; or set .*count of the EdgeSite to 1"
    ) as e:
        tasks._require_accelerator(resource, processes)

    assert e.value.reason is FailureReason.NO_ACCELERATOR


def test_without_a_claim_as_many_processes_compute_as_there_are_gpus_and_on_a_cpu_as_many_as_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = []
    for has_gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        found.append(device.usable_processes(2))

    assert found == [1, 2]


def test_a_failed_task_reports_its_reason(task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_task: EvaluateTask, _runtime: TaskRuntime) -> None:
        raise TaskFailed(FailureReason.BAD_MODEL, "no tokenizer" * 1000)

    code, failure = perform_with(fails, task, tmp_path, monkeypatch)

    assert (code, failure.reason) == (ExitCode.BAD_MODEL, FailureReason.BAD_MODEL)
    assert failure.message == ("no tokenizer" * 1000)[:4096]


def test_a_stopped_task_reports_its_progress(task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(_task: EvaluateTask, _runtime: TaskRuntime) -> None:
        raise Terminated("after step 3 of 9")

    code, failure = perform_with(stops, task, tmp_path, monkeypatch)

    assert (code, failure.reason) == (ExitCode.TERMINATED, FailureReason.TERMINATED)
    assert failure.message.endswith(" s, after step 3 of 9")


def test_running_out_of_memory_has_its_own_exit_status(task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grows(_task: EvaluateTask, _runtime: TaskRuntime) -> None:
        bytearray(1 << 62)

    assert perform_with(grows, task, tmp_path, monkeypatch)[0] is ExitCode.OUT_OF_MEMORY


def test_an_unexpected_exception_has_its_traceback_in_the_log_and_only_its_location_in_the_result(
    task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(_task: EvaluateTask, _runtime: TaskRuntime) -> None:
        raise KeyError("a patient's name")

    code, failure = perform_with(breaks, task, tmp_path, monkeypatch)

    assert (code, failure.reason) == (ExitCode.UNEXPECTED, FailureReason.UNEXPECTED)
    assert failure.message.startswith("KeyError in breaks (test_command_line.py:")
    assert "patient" not in failure.message
    assert "patient" in caplog.text


def test_the_scratch_folder_is_removed_after_the_task(task: EvaluateTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def litters(_task: EvaluateTask, runtime: TaskRuntime) -> None:
        folders.append(runtime.folder)
        (runtime.folder / "litter").touch()
        raise Terminated

    perform_with(litters, task, tmp_path, monkeypatch)

    assert not folders[0].exists()


FIRST_IMPORT = """
import gc, sys
from fedpipe_trainer import tasks

sys.path.insert(0, "{folder}")
tasks._RECIPES["evaluate"] = "a_recipe"
sys.modules |= {already}
try:
    outcome = tasks.import_recipe("evaluate").COLLECTS
except ImportError as error:
    outcome = error
print(outcome, gc.isenabled(), gc.get_freeze_count() > 0)
"""

COMPILER_OF_A_TRAINER = """
import sys
from fedpipe_trainer import tasks

tasks.import_recipe("train")
print("torch" in sys.modules, "torch._inductor.compile_fx" in sys.modules)
"""

SERVED_TASK = """
import io, sys
from fedpipe_trainer import serve
from fedpipe_trainer.contract import ExitCode
from fedpipe_trainer.process import StopRequest
from fedpipe_trainer.settings import read

def perform(*_arguments, **_named):
    print("torch" in sys.modules)
    return ExitCode.OK

serve._perform_with_log = perform
serve.serve(io.StringIO("a task\\n"), settings=read({}), write_line=lambda _line: None, stop=StopRequest())
"""


def test_a_process_that_serves_has_imported_its_libraries_before_the_first_task() -> None:
    done = subprocess.run([sys.executable, "-c", SERVED_TASK], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("recipe", "already", "output"),
    [
        ("import gc; COLLECTS = gc.isenabled()", "{}", "False True True"),
        ("import gc; COLLECTS = gc.isenabled()", "{'torch': gc}", "True True False"),
        ("import no_such_library", "{}", "No module named 'no_such_library' True False"),
    ],
    ids=["the first", "a later one", "one that cannot be imported"],
)
def test_the_garbage_collector_ignores_what_the_first_recipe_imports_and_is_enabled_afterwards(
    tmp_path: Path, recipe: str, already: str, output: str
) -> None:
    (tmp_path / "a_recipe.py").write_text(recipe)

    done = subprocess.run(
        [sys.executable, "-c", FIRST_IMPORT.format(folder=tmp_path, already=already)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == output


def test_a_trainer_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILER_OF_A_TRAINER], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "True False"


@pytest.mark.parametrize(("already", "seen"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")], ids=["by default", "where the user sets it"])
def test_threads_that_wait_spin_briefly(tmp_path: Path, already: dict[str, str], seen: str) -> None:
    (tmp_path / "a_recipe.py").write_text("import os; COLLECTS = os.environ['GOMP_SPINCOUNT']")
    program = FIRST_IMPORT.format(folder=tmp_path, already="{}")
    inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=inherited | already)

    assert done.stdout.split()[0] == seen
