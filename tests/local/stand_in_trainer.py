"""A stand-in for the trainer in tests of the local backend: it speaks the serve protocol and does what its task file says.

With a path as its argument, it runs that one task and ends, like the operator's worker.
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
    """SIGTERM was received."""


def stop(_number: int, _frame: FrameType | None) -> None:
    raise StoppedError


def send_message(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def wait_for(pipe: str) -> None:
    """Wait until something is written to the pipe or a signal comes, also one that came just before."""
    readable, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    select.select([os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), readable], [], [])


def perform(task_file: Path) -> int:
    task = json.loads(task_file.read_text())
    folder = task_file.parent
    if "print" in task:
        sys.stdout.write(task["print"] + "\n")
    if "log" in task:
        (folder / "log").write_text(task["log"])
    if "describe" in task:
        description = {
            "pid": os.getpid(),
            "session": os.getsid(0),
            "cpus": sorted(os.sched_getaffinity(0)),
            "environment": dict(os.environ),
        }
        Path(task["describe"]).write_text(json.dumps(description))
    if task.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    memory = b"x" * task.get("allocate", 0)
    if "child_allocates" in task:
        code = f"import sys; memory = b'x' * {task['child_allocates']}; sys.stdin.read()"
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    send_message(phase="train", step=1, steps=2, loss=0.5)
    if "meet" in task:
        Path(task["meet"] + ".here").write_text(str(len(memory)))
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
            send_message(ended=line.rstrip("\n"), exitCode=code)
            if code == TERMINATED:
                return code
    except StoppedError:
        return TERMINATED
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    sys.exit(perform_or_stop(Path(sys.argv[1])) if len(sys.argv) > 1 else serve())
