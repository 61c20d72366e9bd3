"""Processes of the cluster: one that is being killed counts as running until its ports are free."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cluster_user import wait_until
from testcluster.layout import Layout
from testcluster.processes import _stat, pid_of

WITHOUT_ITS_FIRST_THREAD: Final = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)
"""
"""A program as it is for a moment after SIGKILL: its first thread has ended, and another still holds what is open."""


@pytest.fixture
def ending() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", WITHOUT_ITS_FIRST_THREAD], stdin=subprocess.PIPE) as process:
        wait_until(lambda: (found := _stat(process.pid)) is None or found[0] == "Z", "its first thread has ended", seconds=60)
        yield process
        os.kill(process.pid, signal.SIGKILL)


def test_a_process_whose_threads_have_not_all_ended_is_still_running(ending: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    file = layout.run / "pids" / "api-server"
    file.parent.mkdir(parents=True)
    found = _stat(ending.pid)
    assert found is not None
    file.write_text(f"{ending.pid} {found[1]}")

    assert found[0] == "Z"
    assert pid_of(layout, "api-server") == ending.pid


def test_a_process_that_has_ended_is_not_running(tmp_path: Path) -> None:
    layout, process = Layout(tmp_path), subprocess.Popen([sys.executable, "-c", ""])
    file = layout.run / "pids" / "api-server"
    file.parent.mkdir(parents=True)
    found = _stat(process.pid)
    assert found is not None
    file.write_text(f"{process.pid} {found[1]}")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now

    assert pid_of(layout, "api-server") is None
    process.wait()
