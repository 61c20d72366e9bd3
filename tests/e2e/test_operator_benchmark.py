"""The operator's benchmark in its smallest form: it runs, and the figures that do not depend on size are within their limits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "operator"
SMALL = ("--sites", "10", "--runs", "1", "--rounds", "1", "--pace", "0.1", "--spread", "1", "--limit", "240")


def test_the_benchmark_measures_a_small_run_to_its_end_and_cleans_up(disposable_cluster: None) -> None:
    del disposable_cluster
    done = subprocess.run([sys.executable, BENCHMARK, *SMALL], capture_output=True, text=True, check=False, timeout=400)

    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs finished, 1 rounds done" in done.stdout
    assert figure(done.stdout, "API calls per site and round") < 24, (
        "the limit is for a run of one round, which needs more of them for each round than a run of ten"
    )
    assert figure(done.stdout, "operator's memory, most") < 300
    assert re.search(r"of the other programs \|.*kube-apiserver [\d.]+", done.stdout), "the processor time is listed by program"
    assert "Answered by an error: none." in done.stdout
    assert subprocess.run(["pgrep", "-f", "benchmark-operator"], capture_output=True, check=False).returncode == 1


def figure(table: str, row: str) -> float:
    """The first number in this row of the table."""
    found = re.search(rf"^\| {re.escape(row)}[^|]*\| ([\d.]+)", table, re.MULTILINE)
    assert found, table
    return float(found[1])
