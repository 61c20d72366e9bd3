"""A site's memory limit is enforced, by a watch or by the kernel."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from workbench import STAND_INS, Bench, Meet, OpenBench

from fedpipe_operator.doors import JobState, Limits
from fedpipe_operator.local import memory

MEBI = 2**20
LIMIT = Limits(memory_bytes=100 * MEBI)


def test_a_task_that_passes_its_limit_is_killed_and_its_log_says_so(bench: Bench, meeting: Meet) -> None:
    bench.start("train-a", "a", limits=LIMIT, allocate=300 * MEBI, meet=str(meeting("never").path))

    seen = bench.ended("train-a")

    assert (seen.state, seen.exit_code, seen.reason) == (JobState.FAILED, 137, "OutOfMemory")
    assert str(100 * MEBI) in bench.log("train-a")


def test_what_a_task_starts_counts_too_and_dies_with_it(bench: Bench, meeting: Meet) -> None:
    bench.start("train-a", "a", limits=LIMIT, child_allocates=300 * MEBI, meet=str(meeting("never").path))

    assert bench.ended("train-a").reason == "OutOfMemory"


def test_a_task_below_its_limit_is_left_alone_and_the_site_goes_on_after_one_above(bench: Bench, meeting: Meet) -> None:
    bench.start("above", "a", limits=LIMIT, allocate=300 * MEBI, meet=str(meeting("never").path))
    bench.ended("above")
    bench.start("below", "a", limits=LIMIT, allocate=30 * MEBI)

    assert bench.ended("below").state is JobState.SUCCEEDED


def test_the_kernel_enforces_the_limit_in_a_cgroup_that_was_given(open_door: OpenBench, meeting: Meet) -> None:
    given = os.environ.get("FEDPIPE_TEST_CGROUP")
    if not given:
        pytest.skip("FEDPIPE_TEST_CGROUP names no cgroup that is ours to use")
    bench = open_door(processes=replace(STAND_INS, cgroup=Path(given)))
    bench.start("train-a", "a", limits=LIMIT, allocate=300 * MEBI, meet=str(meeting("never").path))

    seen = bench.ended("train-a")

    assert (seen.exit_code, seen.reason) == (137, "OutOfMemory")
    assert "resident set" not in bench.log("train-a")


def test_where_a_cgroup_cannot_be_made_the_watch_takes_over(open_door: OpenBench, meeting: Meet, caplog: pytest.LogCaptureFixture) -> None:
    bench = open_door(processes=replace(STAND_INS, cgroup=Path("/proc/self")))
    bench.start("train-a", "a", limits=LIMIT, allocate=300 * MEBI, meet=str(meeting("never").path))

    assert bench.ended("train-a").reason == "OutOfMemory"
    assert "the resident set is watched instead" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory.events", "low 0\nhigh 0\nmax 12\noom 1\noom_kill 2\n", 2),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1),
        ("memory.events", "low 0\n", 0),
    ],
    ids=["version 2", "version 1", "none"],
)
def test_the_kernels_kills_are_read_from_either_version_of_cgroups(tmp_path: Path, name: str, text: str, expected: int) -> None:
    (tmp_path / name).write_text(text)

    assert memory.kills(tmp_path) == expected
