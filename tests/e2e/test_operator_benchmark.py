"""The operator's benchmark in its smallest form: it runs, and the figures that do not depend on size are within their limits."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "operator"
SITES, ROUNDS = 10, 1
SMALL = ("--sites", f"{SITES}", "--runs", "1", "--rounds", f"{ROUNDS}", "--pace", "0.1", "--spread", "1", "--limit", "240")
JOBS = SITES * (ROUNDS + 2) + 2
"""The profile, the rounds and the evaluation of the last adapter at each site; the trial of the export, and the export."""
WRITES = (3 * JOBS + 8 * ROUNDS + 8) + 5 * SITES
"""Of a Job: the Job, its Secret, and a status for its end. Of the run: three statuses, four events and the deletion of Secrets a round;
three statuses and five events at its ends. Of a site: four statuses (found, in use, measured, free) and an event."""
READS = 40
"""At the start: a few lists of each kind, and the API's resources."""


def test_the_benchmark_measures_a_small_run_to_its_end_and_cleans_up(disposable_cluster: None) -> None:
    del disposable_cluster
    done = subprocess.run([sys.executable, BENCHMARK, *SMALL], capture_output=True, text=True, check=False, timeout=400)

    assert done.returncode == 0, done.stderr
    assert "1 of 1 runs finished, 1 rounds done" in done.stdout
    assert figure(done.stdout, "create jobs") == figure(done.stdout, "create secrets") == JOBS
    assert figure(done.stdout, "API calls per site and round") <= (WRITES + READS) / (SITES * ROUNDS), (
        "one round bears the profile, the last evaluation and the export alone: a run of ten needs less than five calls for each"
    )
    assert figure(done.stdout, "operator's memory, most") < 300
    assert re.search(r"of the other programs \|.*kube-apiserver [\d.]+", done.stdout), "the processor time is listed by program"
    assert "Answered by an error: get leases: 404 (1)." in done.stdout, "there is no Lease before the operator makes it"
    assert subprocess.run(["pgrep", "-f", "benchmark-operator"], capture_output=True, check=False).returncode == 1


def figure(table: str, row: str) -> float:
    """The first number in this row of the table."""
    found = re.search(rf"^\| {re.escape(row)}[^|]*\| ([\d.]+)", table, re.MULTILINE)
    assert found, table
    return float(found[1])
