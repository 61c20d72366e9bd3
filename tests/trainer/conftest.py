"""Toy models of real architectures with random weights, made once a session, and what whole-script tests need around them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_disks import small_disk
from toys import byte_tokenizer, make_toy
from transformers import PreTrainedTokenizerFast

from fedpipe_trainer.contract import Ended, Wire

# The same bytes every time, limits of the process: what is tested here is the CPU's. A GPU is used by the tests that ask for one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from an architecture's name to the folder of a model of it: two layers, 32 wide, byte-level tokenizer."""
    root = tmp_path_factory.mktemp("toys")

    def made(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            make_toy(name, folder)
        return folder

    return made


class Trainer:
    """A serving trainer in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def do(self, task: Wire, folder: Path) -> int:
        """Have it do the task, whose file goes into `folder`; the exit status."""
        self.start(task, folder)
        return self.wait()

    def start(self, task: Wire, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "task.json"
        path.write_text(task.to_json())
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()

    def line(self) -> dict[str, Any]:
        """Its next line of standard output."""
        assert self.process.stdout is not None
        document: dict[str, Any] = json.loads(self.process.stdout.readline())
        return document

    def wait(self) -> int:
        while "ended" not in (line := self.line()):
            pass
        return Ended.model_validate(line).exit_code


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """One serving trainer for all tests that do not stop it: the imports cost seconds."""
    cache = tmp_path_factory.mktemp("cache")
    served = serving(cache)
    with served.process:
        yield served
    assert served.process.returncode == 0  # the end of its input is the end of its work


def serving(cache: Path) -> Trainer:
    environment = os.environ | {"FEDPIPE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedpipe_trainer", "--serve"]
    return Trainer(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte."""
    return byte_tokenizer(ends=False)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 KiB."""
    with small_disk(tmp_path / "full", "64k") as folder:
        yield folder


@pytest.fixture
def another_trainer(tmp_path: Path) -> Iterator[Trainer]:
    """A serving trainer that a test may stop."""
    served = serving(tmp_path)
    with served.process:
        yield served
        served.process.kill()
