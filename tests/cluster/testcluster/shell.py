"""Runs other programs, with errors that name the program and the reason."""

import fcntl
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class ClusterError(Exception):
    """The reason why the cluster does not start, for the user."""


def run(*argv: str | Path, env: Mapping[str, str] | None = None, given: str | None = None, cwd: Path | None = None) -> str:
    """Run a program that must succeed; return its output."""
    command = [str(argument) for argument in argv]
    done = subprocess.run(command, env=env and dict(env), input=given, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        output = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise ClusterError(f"`{' '.join(command[:6])}{' …' if len(command) > 6 else ''}` failed ({done.returncode}):\n{output}")
    return done.stdout


def try_to_run(*argv: str | Path) -> str:
    """Run a program that may fail; return what it printed."""
    command = [str(argument) for argument in argv]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def without_proxies() -> dict[str, str]:
    """This environment without proxies, for programs that connect only to our bridge."""
    return {name: value for name, value in os.environ.items() if name not in _PROXIES}


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock on this file, which excludes all other processes that lock it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
