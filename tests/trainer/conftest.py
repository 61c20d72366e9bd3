"""Fixtures: toy models of real architectures with random weights, made once per session, and trainer processes."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from downloads import end_process
from small_disks import small_disk
from toys import byte_tokenizer, folders, make_toy
from transformers import PreTrainedTokenizerFast

from fedpipe_trainer.contract import TaskEnded, Wire
from fedpipe_trainer.task_runtime import TaskRuntime

# Reproducible bytes and memory limits of the process exist only on the CPU. Only the tests in test_on_a_gpu.py use a GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module", autouse=True)
def _only_new_objects_are_collected() -> None:
    """As in a trainer's process: each measurement collects garbage, which takes a second with all that tests import and leave."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder of a toy model of an architecture: two layers, hidden size 32, byte-level tokenizer."""
    return folders(tmp_path_factory.mktemp("toys"), make_toy)


class Trainer:
    """A serving trainer in a separate process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def perform(self, task: Wire, folder: Path) -> int:
        """Perform the task, whose file is written into `folder`; the exit status."""
        self.start(task, folder)
        return self.wait()

    def start(self, task: Wire, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "task.json"
        path.write_text(task.to_json())
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()

    def read_line(self) -> dict[str, Any]:
        """The next line of its standard output."""
        assert self.process.stdout is not None
        document: dict[str, Any] = json.loads(self.process.stdout.readline())
        return document

    def wait(self) -> int:
        while "ended" not in (line := self.read_line()):
            pass
        return TaskEnded.model_validate(line).exit_code


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """One serving trainer for all tests that do not stop it, since its imports take seconds."""
    cache = tmp_path_factory.mktemp("cache")
    served = start_serving_trainer(cache)
    with served.process:
        yield served
    assert served.process.returncode == 0  # it exits at the end of its input


def start_serving_trainer(cache: Path) -> Trainer:
    environment = os.environ | {"FEDPIPE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedpipe_trainer", "--serve"]
    return Trainer(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte."""
    return byte_tokenizer(add_end_token=False)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 KiB."""
    with small_disk(tmp_path / "full", "64k") as folder:
        yield folder


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that cannot be written."""
    with small_disk(tmp_path / "read-only", "16m") as folder:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield folder


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[TaskRuntime]:
    """A task of a process that ends with the test."""
    scratch, cache = tmp_path / "scratch", tmp_path / "cache"
    scratch.mkdir()
    yield TaskRuntime(folder=scratch, cache=cache, write_progress=lambda _progress: None, stop_requested=lambda: False)
    end_process()


@pytest.fixture
def another_trainer(tmp_path: Path) -> Iterator[Trainer]:
    """A serving trainer that a test may stop."""
    served = start_serving_trainer(tmp_path)
    with served.process:
        yield served
        served.process.kill()
