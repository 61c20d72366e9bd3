"""The programs that Debian has no package for: built from the Go module proxy, once for each version."""

import os
import re
import shutil
import time
from pathlib import Path

from testcluster.layout import Layout, default_layout
from testcluster.shell import ClusterError, locked, run, try_to_run
from testcluster.versions import GO, PROGRAMS, Program


def path_of(layout: Layout, program: Program) -> Path:
    """The path of the built program."""
    return layout.cache / f"{program.name}-{program.version}"


def binary(layout: Layout, name: str) -> Path:
    """The path of the program with this name, built or not."""
    return path_of(layout, PROGRAMS[name])


def build_all(layout: Layout) -> None:
    """Build the programs that do not exist, one after another; print a line for each with its seconds."""
    if all(path_of(layout, program).exists() for program in PROGRAMS.values()):
        return
    with locked(layout.cache / "programs.lock"):
        for program in PROGRAMS.values():
            if not path_of(layout, program).exists():
                _build(layout, program)


def build(program: Program) -> Path:
    """Build this program, if that has not been done; where it is."""
    layout = default_layout()
    with locked(layout.cache / "programs.lock"):
        if not path_of(layout, program).exists():
            _build(layout, program)
    return path_of(layout, program)


def _build(layout: Layout, program: Program) -> None:
    _require_go()
    built = path_of(layout, program)
    unfinished = built.with_name(f".{built.name}.unfinished")
    start = time.monotonic()
    env = os.environ | {"CGO_ENABLED": "0"}
    run(
        *("nice", "-n", "19", "go", "build", "-C", program.folder, "-trimpath", "-buildvcs=false"),
        *("-ldflags", program.flags, "-o", unfinished, program.package),
        env=env,
    )
    unfinished.rename(built)
    print(f"built {built.name} in {time.monotonic() - start:.0f} s", flush=True)


def _require_go() -> None:
    wanted = ".".join(map(str, GO))
    if shutil.which("go") is None:
        raise ClusterError(f"Go {wanted} or newer is not installed; it builds the cluster's programs")
    version = try_to_run("go", "env", "GOVERSION")
    if (found := go_version(version)) < GO:
        raise ClusterError(f"The cluster's programs need Go {wanted} or newer; this is {'.'.join(map(str, found))}")


def go_version(text: str) -> tuple[int, int]:
    """The first two numbers of a version such as `go1.26.8`; a development version counts as the newest."""
    numbers = re.match(r"go(\d+)\.(\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else (99, 0)
