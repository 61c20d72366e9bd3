"""A stand-in for the trainer, for the door's tests: it speaks the serve protocol and does as its task file says.

With a path as its argument it does that one task and ends, as the operator's worker does.
"""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

TERMINATED = 143


class StoppedError(Exception):
    """SIGTERM came."""


def stop(_number: int, _frame: FrameType | None) -> None:
    raise StoppedError


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def wait_for(pipe: str) -> None:
    """Until somebody writes there, or a signal comes. To open it and sleep would be to sleep through one that came just before."""
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    select.select([os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), woken], [], [])


def perform(task_file: Path) -> int:
    task = json.loads(task_file.read_text())
    folder = task_file.parent
    if "say" in task:
        sys.stdout.write(task["say"] + "\n")
    if "log" in task:
        (folder / "log").write_text(task["log"])
    if "tell" in task:
        about = {"pid": os.getpid(), "session": os.getsid(0), "cpus": sorted(os.sched_getaffinity(0)), "environment": dict(os.environ)}
        Path(task["tell"]).write_text(json.dumps(about))
    if task.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held = b"x" * task.get("allocate", 0)
    if "child_allocates" in task:
        code = f"import sys; held = b'x' * {task['child_allocates']}; sys.stdin.read()"
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    say(phase="train", step=1, steps=2, loss=0.5)
    if "meet" in task:
        Path(task["meet"] + ".here").write_text(str(len(held)))
        wait_for(task["meet"] + ".go")
    if "signal" in task:
        os.kill(os.getpid(), task["signal"])
    return int(task.get("exit", 0))


def perform_or_stop(task_file: Path) -> int:
    try:
        return perform(task_file)
    except StoppedError:
        (task_file.parent / "checkpoint").write_text("left in time")
        return TERMINATED


def serve() -> int:
    try:
        for line in iter(sys.stdin.readline, ""):
            code = perform_or_stop(Path(line.rstrip("\n")))
            say(ended=line.rstrip("\n"), exitCode=code)
            if code == TERMINATED:
                return code
    except StoppedError:
        return TERMINATED
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(perform_or_stop(Path(sys.argv[1])) if len(sys.argv) > 1 else serve())
