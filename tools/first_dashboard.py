"""The time from `git clone` to the first dashboard, phase by phase: `python tools/first_dashboard.py`.

Everything is done in a fresh clone of this repository, with a virtual environment of its own, on the cluster of `tests/cluster`. It needs
what `make cluster` needs, and that no cluster runs (`make cluster-down`). The run is that of `tests/e2e/test_quickstart.py`: the example
with a smaller model and two rounds, watched by a Prometheus. The clone comes from this machine's disk. What a cache holds already (the
cluster's programs, layers of images, packages of pip) decides the first phases; whether programs were built is said.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
_DASHBOARD: Final = "to the first dashboard that shows the run"
_TEST: Final = "tests/e2e/test_quickstart.py"


class Phase(NamedTuple):
    """What took how long."""

    name: str
    seconds: float


def table(phases: list[Phase]) -> str:
    """The phases as a table, each with the time since the beginning."""
    rows, since = ["| phase | seconds | since the clone |", "|---|---|---|"], 0.0
    for name, seconds in phases:
        since += seconds
        rows.append(f"| {name} | {seconds:.0f} | {since:.0f} |")
    return "\n".join(rows)


def cached_programs(output: str) -> str:
    """What `tests/cluster up` says of the programs that it had to build."""
    built = re.findall(r"^built (\S+) in (\d+) s$", output, re.MULTILINE)
    return f"{len(built)} programs were built, in {sum(int(seconds) for _, seconds in built)} s" if built else "all programs were cached"


def environment_of(output: str) -> dict[str, str]:
    """The variables that `tests/cluster env` prints, as a shell would set them."""
    found = dict(re.findall(r'^export (\w+)="(.*)"$', output, re.MULTILINE))
    return {name: value.replace("$PATH", os.environ["PATH"]) for name, value in found.items()}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run(*command: str | Path, folder: Path, environ: Mapping[str, str] | None = None) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(command, cwd=folder, env={**os.environ, **(environ or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def measure(folder: Path) -> list[Phase]:
    """All phases, in a clone in this folder; prints each when it has ended."""
    phases: list[Phase] = []
    clone, recorded = folder / "clone", folder / "seconds"
    python = clone / ".venv" / "bin" / "python"

    def timed(name: str, *command: str | Path, environ: Mapping[str, str] | None = None, at: Path = clone) -> str:
        start = time.monotonic()
        output = run(*command, folder=at, environ=environ)
        phases.append(Phase(name, time.monotonic() - start))
        _say(f"{phases[-1].seconds:7.0f} s  {name}")
        return output

    timed("git clone", "git", "clone", "--quiet", "--no-hardlinks", ROOT, clone, at=folder)
    timed("virtual environment (make venv)", "make", "--no-print-directory", "venv")
    up = timed("cluster", python, "tests/cluster", "up")
    _say(f"           {cached_programs(up)}")
    timed("images, built and pushed", python, "tests/cluster", "images")
    environ = environment_of(run(python, "tests/cluster", "env", folder=clone))
    images = [
        f"--set={part}Image.{key}={value}"
        for part in ("operator", "trainer")
        for key, value in zip(("repository", "tag"), environ[f"FEDPIPE_{part.upper()}_IMAGE"].rsplit(":", 1), strict=True)
    ]
    chart = ("helm", "install", "fedpipe", "charts/fedpipe", "-n", "fedpipe", "--create-namespace", "--wait", "--set=rbac.scope=cluster")
    timed("helm install", *chart, *images, environ=environ)
    start = time.monotonic()
    run(
        python,
        "-m",
        "pytest",
        "-m",
        "e2e",
        "-n",
        "0",
        "-q",
        _TEST,
        folder=clone,
        environ=environ | {"FEDPIPE_RECORD_SECONDS": str(recorded)},
    )
    whole = time.monotonic() - start
    inside = [Phase(name, seconds) for name, seconds in map(json.loads, recorded.read_text().splitlines())]
    return [*phases, *inside, Phase("the checks of the results", whole - sum(one.seconds for one in inside))]


def main() -> None:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory(prefix="fedpipe-first-") as folder:
        Path(folder).chmod(0o755)  # the cluster's nodes read files below it
        phases = measure(Path(folder))
    _say(f"\n{table(phases)}")
    upto = next(index for index, one in enumerate(phases) if one.name == _DASHBOARD) + 1
    _say(f"\nFrom git clone to the first dashboard: {sum(one.seconds for one in phases[:upto]):.0f} s")


if __name__ == "__main__":
    main()
