"""A local backend with a stand-in trainer, and a rendezvous of a test and a task."""

import json
import os
import select
import sys
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

from fedpipe_operator.backend import Job, JobResources, JobState, JobStatus, TaskKind
from fedpipe_operator.local import LocalBackend, ProcessSettings

STAND_IN = (sys.executable, str(Path(__file__).parent.with_name("local") / "stand_in_trainer.py"))
STAND_INS = ProcessSettings(trainer=STAND_IN, worker=STAND_IN, processors=4, cgroup=None)
NO_LIMITS = JobResources()
PATIENCE_SECONDS = 60.0
ENDED = (JobState.SUCCEEDED, JobState.FAILED)


class Meeting:
    """A rendezvous: a task and a test wait for each other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(f"{path}.here")
        os.mkfifo(f"{path}.go")

    def join(self) -> None:
        """Wait until the task has reached the rendezvous."""
        here = os.open(f"{self.path}.here", os.O_RDONLY | os.O_NONBLOCK)
        ready, _, _ = select.select([here], [], [], PATIENCE_SECONDS)
        os.close(here)
        assert ready, "the task did not reach the rendezvous"

    def release(self) -> None:
        """Let the task continue."""
        Path(f"{self.path}.go").write_text("go")


class Bench:
    """A local backend in a folder, with short methods for tests."""

    def __init__(self, folder: Path, *, max_concurrent: int = 2, processes: ProcessSettings = STAND_INS) -> None:
        self.folder = folder
        self.backend = LocalBackend(folder, max_concurrent=max_concurrent, processes=processes, clock=count(1000.0).__next__)

    def start(self, name: str, site: str = "", *, kind: str = "train", resources: JobResources = NO_LIMITS, **task: object) -> None:
        self.backend.start(Job(name=name, kind=TaskKind(kind), site=site, round=1), json.dumps(task), resources)

    def until(self, holds: Callable[[Mapping[str, JobStatus]], bool]) -> Mapping[str, JobStatus]:
        while not holds(seen := self.backend.observe()):
            assert self.backend.wait(PATIENCE_SECONDS), seen
        return seen

    def ended(self, name: str) -> JobStatus:
        return self.until(lambda seen: seen[name].state in ENDED)[name]

    def states(self) -> dict[str, str]:
        return {name: seen.state.name for name, seen in self.backend.observe().items()}

    def log(self, name: str) -> str:
        return (self.folder / "jobs" / name / "log").read_text()


OpenBench = Callable[..., Bench]
Meet = Callable[[str], Meeting]
