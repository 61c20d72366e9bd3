"""Other programs, called so that a failure says which one and why."""

import fcntl
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class ClusterError(Exception):
    """What keeps the cluster from coming up, in words for the person who wants it up."""


def run(*argv: str | Path, env: Mapping[str, str] | None = None, given: str | None = None, cwd: Path | None = None) -> str:
    """The output of a program that must succeed."""
    words = [str(word) for word in argv]
    done = subprocess.run(words, env=env and dict(env), input=given, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-30:])
        raise ClusterError(f"`{' '.join(words[:6])}{' …' if len(words) > 6 else ''}` failed ({done.returncode}):\n{said}")
    return done.stdout


def try_to_run(*argv: str | Path) -> str:
    """The output of a program that may fail: then what it had printed until then."""
    words = [str(word) for word in argv]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def without_proxies() -> dict[str, str]:
    """This environment for programs that talk to our bridge alone."""
    return {name: value for name, value in os.environ.items() if name not in _PROXIES}


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Alone among all processes that lock this file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
