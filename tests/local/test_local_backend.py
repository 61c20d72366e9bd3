"""The local backend: jobs, scheduling, ends. A stand-in speaks the protocol of the trainer."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from workbench import STAND_INS, Bench, Meet, OpenBench

from fedpipe_operator.backend import JobResources, JobState, JobStatus
from fedpipe_operator.local import ProcessSettings
from fedpipe_trainer.contract import Progress


def description(file: Path) -> dict[str, Any]:
    """What the process of a task wrote description itself."""
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_a_task_runs_and_its_newest_progress_is_observed(bench: Bench) -> None:
    bench.start("train-a", "a")

    status = bench.ended("train-a")

    assert status.state is JobState.SUCCEEDED
    assert (status.exit_code, status.reason, status.message) == (0, "", "")
    assert status.progress == Progress(phase="train", step=1, steps=2, loss=0.5)


def test_a_job_beyond_the_limit_is_pending(open_backend: OpenBench, meeting: Meet) -> None:
    bench = open_backend(max_concurrent=1)
    first = meeting("first")
    bench.start("train-a", "a", meet=str(first.path))
    bench.start("train-b", "b")
    first.join()

    assert bench.states() == {"train-a": "RUNNING", "train-b": "PENDING"}

    first.release()
    ended = bench.ended("train-b")
    assert ended.state is JobState.SUCCEEDED
    assert ended.running_since is not None
    assert ended.running_since > ended.started_at + 1, "the end of the first is recorded in between, at a time of its own"


def test_no_more_sites_are_active_at_once_than_allowed(bench: Bench, meeting: Meet) -> None:
    at = {site: meeting(site) for site in "abc"}
    for site, meeting_ in at.items():
        bench.start(f"train-{site}", site, meet=str(meeting_.path))
    at["a"].join()
    at["b"].join()

    assert bench.states() == {"train-a": "RUNNING", "train-b": "RUNNING", "train-c": "PENDING"}

    at["b"].release()
    at["c"].join()
    assert bench.states() == {"train-a": "RUNNING", "train-b": "SUCCEEDED", "train-c": "RUNNING"}
    at["a"].release()
    at["c"].release()
    bench.ended("train-a")
    bench.ended("train-c")


def test_a_site_does_one_task_at_a_time(bench: Bench, meeting: Meet) -> None:
    first = meeting("first")
    bench.start("train-a", "a", meet=str(first.path))
    bench.start("evaluate-a", "a", kind="evaluate")
    first.join()

    assert bench.states() == {"train-a": "RUNNING", "evaluate-a": "PENDING"}

    first.release()
    bench.ended("evaluate-a")


def test_one_process_runs_all_tasks_of_a_site(bench: Bench, tmp_path: Path) -> None:
    for name in ("profile-a", "train-a", "evaluate-a"):
        bench.start(name, "a", describe=str(tmp_path / name))
        bench.ended(name)

    assert len({description(tmp_path / name)["pid"] for name in ("profile-a", "train-a", "evaluate-a")}) == 1


def test_every_site_has_its_own_process(bench: Bench, tmp_path: Path) -> None:
    for site in "ab":
        bench.start(f"train-{site}", site, describe=str(tmp_path / site))
        bench.ended(f"train-{site}")

    assert description(tmp_path / "a")["pid"] != description(tmp_path / "b")["pid"]


def test_without_reuse_every_task_has_its_own_process(open_backend: OpenBench, tmp_path: Path) -> None:
    bench = open_backend(processes=replace(STAND_INS, reuse=False))
    for name in ("one", "two"):
        bench.start(name, "a", describe=str(tmp_path / name))
        bench.ended(name)

    assert description(tmp_path / "one")["pid"] != description(tmp_path / "two")["pid"]


def test_a_task_with_other_limits_gets_a_new_process(bench: Bench, tmp_path: Path) -> None:
    for name, memory_limit in (("one", 2**30), ("two", 2**31)):
        bench.start(name, "a", resources=JobResources(memory_bytes=memory_limit), describe=str(tmp_path / name))
        bench.ended(name)

    assert description(tmp_path / "one")["pid"] != description(tmp_path / "two")["pid"]
    assert description(tmp_path / "two")["environment"]["FEDPIPE_MEMORY_LIMIT_BYTES"] == str(2**31)


def test_two_processes_beyond_the_limit_are_kept_idle_and_the_oldest_is_evicted(open_backend: OpenBench, tmp_path: Path) -> None:
    bench = open_backend(max_concurrent=1)
    for site in "abcd":
        bench.start(f"train-{site}", site, describe=str(tmp_path / site))
        bench.ended(f"train-{site}")

    alive = [site for site in "abcd" if psutil.pid_exists(description(tmp_path / site)["pid"])]

    assert alive == ["b", "c", "d"]


def test_an_export_starts_only_when_no_idle_process_is_left(bench: Bench, tmp_path: Path) -> None:
    bench.start("train-a", "a", describe=str(tmp_path / "a"))
    bench.ended("train-a")
    bench.start("export", kind="export", describe=str(tmp_path / "export"))
    bench.ended("export")

    assert not psutil.pid_exists(description(tmp_path / "a")["pid"])


def test_the_operators_own_work_is_a_process_with_its_task_as_argument(bench: Bench) -> None:
    bench.start("plan", kind="plan")
    bench.start("aggregate-1", kind="aggregate")
    bench.start("aggregate-2", kind="aggregate", exit=3)

    assert bench.ended("plan").state is bench.ended("aggregate-1").state is JobState.SUCCEEDED
    assert (bench.ended("aggregate-2").exit_code, bench.ended("aggregate-2").reason) == (3, "BadData")


def test_an_aggregation_does_not_wait_for_the_sites(open_backend: OpenBench, meeting: Meet) -> None:
    bench = open_backend(max_concurrent=1)
    late = meeting("late")
    bench.start("train-a", "a", meet=str(late.path))
    late.join()
    bench.start("aggregate", kind="aggregate")

    assert bench.ended("aggregate").state is JobState.SUCCEEDED
    late.release()


def test_starting_a_job_again_changes_nothing(bench: Bench) -> None:
    bench.start("train-a", "a", log="first start")
    bench.ended("train-a")
    bench.start("train-a", "a", log="second start")

    assert bench.states() == {"train-a": "SUCCEEDED"}
    assert bench.log("train-a") == "first start"


def test_output_that_is_not_of_the_protocol_goes_to_the_log(bench: Bench) -> None:
    bench.start("train-a", "a", print="a library prints")
    bench.ended("train-a")

    assert "a library prints" in bench.log("train-a")


def test_a_failed_task_has_a_reason_and_a_message(bench: Bench) -> None:
    bench.start("train-a", "a", exit=4, log="starting\nno tokenizer in the model's folder\n")

    status = bench.ended("train-a")

    assert (status.state, status.exit_code, status.reason) == (JobState.FAILED, 4, "BadModel")
    assert "no tokenizer in the model's folder" in status.message
    assert "jobs/train-a/log" in status.message


def test_a_killed_trainer_fails_its_task_and_the_next_task_gets_a_new_process(bench: Bench) -> None:
    bench.start("train-a-0", "a", signal=signal.SIGKILL)
    bench.start("train-a-1", "a")

    killed = bench.ended("train-a-0")

    assert (killed.state, killed.exit_code, killed.reason) == (JobState.FAILED, 137, "Killed")
    assert bench.ended("train-a-1").state is JobState.SUCCEEDED


def test_a_crashed_trainer_has_an_exit_code_and_a_reason(bench: Bench) -> None:
    bench.start("train-a", "a", signal=signal.SIGSEGV)

    status = bench.ended("train-a")

    assert (status.exit_code, status.reason) == (139, "Died")


def test_a_trainer_that_cannot_start_has_a_reason_and_a_message(open_backend: OpenBench) -> None:
    bench = open_backend(processes=ProcessSettings(trainer=("/no/such/python",)))
    bench.start("train-a", "a")

    status = bench.ended("train-a")

    assert (status.exit_code, status.reason) == (126, "CannotRun")
    assert "/no/such/python" in status.message


def test_discarding_a_pending_job_removes_it(open_backend: OpenBench, meeting: Meet) -> None:
    bench = open_backend(max_concurrent=1)
    first = meeting("first")
    bench.start("train-a", "a", meet=str(first.path))
    bench.start("train-b", "b", log="it ran")
    first.join()

    bench.backend.discard("train-b")
    first.release()
    bench.ended("train-a")

    assert bench.states() == {"train-a": "SUCCEEDED"}
    assert not (bench.folder / "jobs/train-b/log").exists()


def test_discarding_a_running_job_ends_it_with_a_checkpoint_and_frees_its_slot(
    open_backend: OpenBench, meeting: Meet, tmp_path: Path
) -> None:
    bench = open_backend(max_concurrent=1)
    late = meeting("late")
    bench.start("train-a", "a", meet=str(late.path), describe=str(tmp_path / "a"))
    late.join()

    bench.backend.discard("train-a")
    bench.start("train-b", "b")
    bench.ended("train-b")

    assert bench.states() == {"train-b": "SUCCEEDED"}
    assert (bench.folder / "jobs/train-a/checkpoint").read_text() == "left in time"
    assert not psutil.pid_exists(description(tmp_path / "a")["pid"])


def test_a_discarded_job_can_be_started_again(bench: Bench, meeting: Meet) -> None:
    late = meeting("late")
    bench.start("train-a", "a", meet=str(late.path))
    late.join()
    bench.backend.discard("train-a")
    bench.start("train-a", "a")

    assert bench.ended("train-a").state is JobState.SUCCEEDED


def test_discarding_an_unknown_job_is_no_error(bench: Bench) -> None:
    bench.backend.discard("train-z")

    assert bench.states() == {}


def test_a_process_that_ignores_sigterm_is_killed(open_backend: OpenBench, meeting: Meet, tmp_path: Path) -> None:
    bench = open_backend(processes=replace(STAND_INS, grace_seconds=0.2))
    late = meeting("late")
    bench.start("train-a", "a", ignore_sigterm=True, meet=str(late.path), describe=str(tmp_path / "a"))
    late.join()

    bench.backend.close()

    assert not psutil.pid_exists(description(tmp_path / "a")["pid"])
    assert bench.backend.observe()["train-a"].exit_code == 137


def test_an_idle_process_that_ignores_sigterm_ends_when_its_input_is_closed(bench: Bench) -> None:
    bench.start("train-a", "a", ignore_sigterm=True)
    bench.ended("train-a")
    process = bench.backend._children["a"].process

    bench.backend.close()

    assert process.returncode == 0


def test_closing_lets_every_task_leave_its_checkpoint(bench: Bench, meeting: Meet) -> None:
    at = {site: meeting(site) for site in "ab"}
    for site, meeting_ in at.items():
        bench.start(f"train-{site}", site, meet=str(meeting_.path))
    bench.start("train-c", "c")
    for meeting_ in at.values():
        meeting_.join()

    bench.backend.close()

    status = bench.backend.observe()
    assert {name: (job.exit_code, job.reason) for name, job in status.items()} == {
        "train-a": (143, "Terminated"),
        "train-b": (143, "Terminated"),
        "train-c": (None, ""),
    }
    assert all((bench.folder / f"jobs/train-{site}/checkpoint").exists() for site in "ab")


def test_a_new_backend_observes_the_jobs_that_ended_and_no_others(open_backend: OpenBench) -> None:
    before = open_backend()
    before.start("train-a", "a")
    before.start("train-b", "b", exit=3, log="a bad row")
    before.ended("train-a"), before.ended("train-b")
    before.start("train-c", "c", signal=signal.SIGKILL)
    before.ended("train-c")
    (before.folder / "jobs/train-c/exit.json").unlink()
    ended = before.backend.observe()
    before.backend.close()

    after = open_backend()

    assert dict(after.backend.observe()) == {name: without_progress(ended[name]) for name in ("train-a", "train-b")}
    after.start("train-c", "c")
    assert after.ended("train-c").state is JobState.SUCCEEDED


def without_progress(status: JobStatus) -> JobStatus:
    return replace(status, progress=None)


def test_a_trainer_gets_no_store_credentials_but_a_worker_does(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the operator")
    monkeypatch.setenv("FEDPIPE_CACHE", "/somewhere")
    bench.start("train-a", "a", describe=str(tmp_path / "trainer"))
    bench.start("aggregate", kind="aggregate", describe=str(tmp_path / "worker"))
    bench.ended("train-a"), bench.ended("aggregate")

    trainer, worker = description(tmp_path / "trainer")["environment"], description(tmp_path / "worker")["environment"]

    assert not [name for name in trainer if name.startswith("AWS_")]
    assert trainer["FEDPIPE_CACHE"] == "/somewhere"
    assert "AWS_SECRET_ACCESS_KEY" in worker


def test_a_sites_cache_replaces_the_users(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPIPE_CACHE", "/somewhere")
    bench.start("train-a", "a", resources=JobResources(cache="/volumes/ward-cache/wards"), describe=str(tmp_path / "a"))
    bench.ended("train-a")

    assert description(tmp_path / "a")["environment"]["FEDPIPE_CACHE"] == "/volumes/ward-cache/wards"


def test_a_sites_processors_are_limited(bench: Bench, tmp_path: Path) -> None:
    bench.start("train-a", "a", resources=JobResources(cpus=1), describe=str(tmp_path / "a"))
    bench.ended("train-a")

    process = description(tmp_path / "a")

    assert process["environment"]["OMP_NUM_THREADS"] == "1"
    assert len(process["cpus"]) == 1


def test_ctrl_c_in_the_terminal_does_not_reach_a_trainer(bench: Bench, tmp_path: Path) -> None:
    bench.start("train-a", "a", describe=str(tmp_path / "a"))
    bench.ended("train-a")

    process = description(tmp_path / "a")

    assert process["session"] == process["pid"] != os.getsid(0)


def test_waiting_ends_only_when_a_job_has_changed(bench: Bench) -> None:
    bench.backend.observe()

    assert not bench.backend.wait(0.01)

    bench.start("train-a", "a")
    assert bench.backend.wait(60)
