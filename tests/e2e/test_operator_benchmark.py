"""The smallest form of the operator's benchmark: it runs, and its figures are within what is aimed at where size does not matter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "operator"
SMALL = ("--sites", "10", "--runs", "1", "--rounds", "1", "--pace", "0.1", "--spread", "1", "--limit", "240")


def test_the_benchmark_measures_a_small_run_to_its_end_and_clears_up(ours: None) -> None:
    del ours
    done = subprocess.run([sys.executable, BENCHMARK, *SMALL], capture_output=True, text=True, check=False, timeout=400)

    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs over, 1 rounds done" in done.stdout
    assert figure(done.stdout, "API calls a site and round") < 24, "of which a run of one round needs more than one of ten"
    assert figure(done.stdout, "operator's memory, most") < 300
    assert re.search(r"what is around it \|.*kube-apiserver [\d.]+", done.stdout), "the processor time of programs is told by name"
    assert "Answered by an error: none." in done.stdout
    assert subprocess.run(["pgrep", "-f", "benchmark-operator"], capture_output=True, check=False).returncode == 1


def figure(table: str, row: str) -> float:
    """The number of this row."""
    found = re.search(rf"^\| {re.escape(row)}[^|]*\| ([\d.]+)", table, re.MULTILINE)
    assert found, table
    return float(found[1])
