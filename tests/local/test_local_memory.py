"""A site's memory limit is enforced, by watching the resident set or by the kernel."""

from dataclasses import replace
from pathlib import Path

import pytest
from workbench import STAND_INS, Bench, Meet, OpenBench

from fedpipe_operator.backend import JobResources, JobState
from fedpipe_operator.local import memory_limit

MEBI = 2**20
LIMIT = JobResources(memory_bytes=100 * MEBI)


def test_a_task_that_exceeds_its_limit_is_killed_and_its_log_says_so(bench: Bench, meeting: Meet) -> None:
    bench.start("train-a", "a", resources=LIMIT, allocate=300 * MEBI, meet=str(meeting("never").path))

    status = bench.ended("train-a")

    assert (status.state, status.exit_code, status.reason) == (JobState.FAILED, 137, "OutOfMemory")
    assert str(100 * MEBI) in bench.log("train-a")


def test_the_child_processes_of_a_task_count_and_are_killed_with_it(bench: Bench, meeting: Meet) -> None:
    bench.start("train-a", "a", resources=LIMIT, child_allocates=300 * MEBI, meet=str(meeting("never").path))

    assert bench.ended("train-a").reason == "OutOfMemory"


def test_a_task_below_its_limit_succeeds_after_another_of_the_site_was_killed(bench: Bench, meeting: Meet) -> None:
    bench.start("above", "a", resources=LIMIT, allocate=300 * MEBI, meet=str(meeting("never").path))
    bench.ended("above")
    bench.start("below", "a", resources=LIMIT, allocate=30 * MEBI)

    assert bench.ended("below").state is JobState.SUCCEEDED


@pytest.mark.skipif(memory_limit.own_group() is None, reason="this process may not make cgroups with a memory limit here")
def test_the_kernel_enforces_the_limit_where_cgroups_can_be_made(open_backend: OpenBench, meeting: Meet) -> None:
    bench = open_backend(processes=replace(STAND_INS, cgroup=memory_limit.own_group()))
    bench.start("train-a", "a", resources=LIMIT, allocate=300 * MEBI, meet=str(meeting("never").path))

    status = bench.ended("train-a")

    assert (status.exit_code, status.reason) == (137, "OutOfMemory")
    assert "the kernel killed the process at the memory limit of its cgroup, 100 MiB" in bench.log("train-a")


def test_where_a_cgroup_cannot_be_made_the_resident_set_is_watched(
    open_backend: OpenBench, meeting: Meet, caplog: pytest.LogCaptureFixture
) -> None:
    bench = open_backend(processes=replace(STAND_INS, cgroup=Path("/proc/self")))
    bench.start("train-a", "a", resources=LIMIT, allocate=300 * MEBI, meet=str(meeting("never").path))

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
def test_kills_by_the_kernel_are_counted_with_either_version_of_cgroups(tmp_path: Path, name: str, text: str, expected: int) -> None:
    (tmp_path / name).write_text(text)

    assert memory_limit.count_kills(tmp_path) == expected


@pytest.mark.parametrize(
    ("membership", "allowed"),
    [
        ("4:memory:/session/7\n0::/\n", "memory/session/7"),
        ("9:cpu,memory:/session/7\n", "memory/session/7"),
        ("0::/user/app/run.scope\n", "user/app"),
        ("0::/user/other/run.scope\n", None),
        ("0::/\n", None),
        ("", None),
    ],
    ids=["version 1", "version 1 with two controllers", "version 2", "version 2 without the controller", "the root", "none"],
)
def test_the_parent_cgroup_is_one_where_the_kernel_allows_children(tmp_path: Path, membership: str, allowed: str | None) -> None:
    for folder in ("memory/session/7", "user/app/run.scope", "user/other/run.scope"):
        (tmp_path / folder).mkdir(parents=True)
    for folder, controllers in (("user/app", "cpu memory"), ("user/other", "cpu"), ("memory/session/7", "")):
        (tmp_path / folder / "cgroup.subtree_control").write_text(controllers)
        (tmp_path / folder / "cgroup.procs").write_text("")
    (tmp_path / "self").write_text(membership)

    group = memory_limit.own_group(tmp_path / "self", tmp_path)

    assert group == (tmp_path / allowed if allowed else None)
