"""The door onto this machine: jobs, turns, ends. A stand-in speaks the trainer's protocol."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from workbench import STAND_INS, Bench, Meet, OpenBench

from fedpipe_operator.backend import JobState, JobStatus, Limits
from fedpipe_operator.local import ProcessSettings
from fedpipe_trainer.contract import Progress


def about(file: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(file.read_text())
    return told


def test_a_task_is_done_and_its_newest_progress_seen(bench: Bench) -> None:
    bench.start("train-a", "a")

    seen = bench.ended("train-a")

    assert seen.state is JobState.SUCCEEDED
    assert (seen.exit_code, seen.reason, seen.message) == (0, "", "")
    assert seen.progress == Progress(phase="train", step=1, steps=2, loss=0.5)


def test_a_job_waits_for_its_turn_and_says_so(open_backend: OpenBench, meeting: Meet) -> None:
    bench = open_backend(max_concurrent=1)
    first = meeting("first")
    bench.start("train-a", "a", meet=str(first.path))
    bench.start("train-b", "b")
    first.join()

    assert bench.states() == {"train-a": "RUNNING", "train-b": "PENDING"}

    first.release()
    assert bench.ended("train-b").state is JobState.SUCCEEDED


def test_as_many_sites_work_side_by_side_as_allowed_and_no_more(bench: Bench, meeting: Meet) -> None:
    at = {site: meeting(site) for site in "abc"}
    for site, place in at.items():
        bench.start(f"train-{site}", site, meet=str(place.path))
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


def test_one_process_serves_the_tasks_of_a_site(bench: Bench, tmp_path: Path) -> None:
    for name in ("profile-a", "train-a", "evaluate-a"):
        bench.start(name, "a", tell=str(tmp_path / name))
        bench.ended(name)

    assert len({about(tmp_path / name)["pid"] for name in ("profile-a", "train-a", "evaluate-a")}) == 1


def test_every_site_has_a_process_of_its_own(bench: Bench, tmp_path: Path) -> None:
    for site in "ab":
        bench.start(f"train-{site}", site, tell=str(tmp_path / site))
        bench.ended(f"train-{site}")

    assert about(tmp_path / "a")["pid"] != about(tmp_path / "b")["pid"]


def test_without_reuse_every_task_has_a_process_of_its_own(open_backend: OpenBench, tmp_path: Path) -> None:
    bench = open_backend(processes=replace(STAND_INS, reuse=False))
    for name in ("one", "two"):
        bench.start(name, "a", tell=str(tmp_path / name))
        bench.ended(name)

    assert about(tmp_path / "one")["pid"] != about(tmp_path / "two")["pid"]


def test_other_limits_mean_another_process(bench: Bench, tmp_path: Path) -> None:
    for name, memory_limit in (("one", 2**30), ("two", 2**31)):
        bench.start(name, "a", limits=Limits(memory_bytes=memory_limit), tell=str(tmp_path / name))
        bench.ended(name)

    assert about(tmp_path / "one")["pid"] != about(tmp_path / "two")["pid"]
    assert about(tmp_path / "two")["environment"]["FEDPIPE_MEMORY_LIMIT_BYTES"] == str(2**31)


def test_two_more_processes_than_may_work_are_kept_and_the_oldest_makes_room(open_backend: OpenBench, tmp_path: Path) -> None:
    bench = open_backend(max_concurrent=1)
    for site in "abcd":
        bench.start(f"train-{site}", site, tell=str(tmp_path / site))
        bench.ended(f"train-{site}")

    alive = [site for site in "abcd" if psutil.pid_exists(about(tmp_path / site)["pid"])]

    assert alive == ["b", "c", "d"]


def test_an_export_shares_the_machine_with_no_idle_process(bench: Bench, tmp_path: Path) -> None:
    bench.start("train-a", "a", tell=str(tmp_path / "a"))
    bench.ended("train-a")
    bench.start("export", kind="export", tell=str(tmp_path / "export"))
    bench.ended("export")

    assert not psutil.pid_exists(about(tmp_path / "a")["pid"])


def test_an_aggregation_is_a_process_that_takes_its_task_as_argument(bench: Bench) -> None:
    bench.start("aggregate-1", kind="aggregate")
    bench.start("aggregate-2", kind="aggregate", exit=3)

    assert bench.ended("aggregate-1").state is JobState.SUCCEEDED
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
    bench.start("train-a", "a", log="done once")
    bench.ended("train-a")
    bench.start("train-a", "a", log="done twice")

    assert bench.states() == {"train-a": "SUCCEEDED"}
    assert bench.log("train-a") == "done once"


def test_what_a_trainer_says_beside_the_protocol_is_in_the_log(bench: Bench) -> None:
    bench.start("train-a", "a", say="a library prints")
    bench.ended("train-a")

    assert "a library prints" in bench.log("train-a")


def test_a_failed_task_says_why(bench: Bench) -> None:
    bench.start("train-a", "a", exit=4, log="starting\nno tokenizer in the model's folder\n")

    seen = bench.ended("train-a")

    assert (seen.state, seen.exit_code, seen.reason) == (JobState.FAILED, 4, "BadModel")
    assert "no tokenizer in the model's folder" in seen.message
    assert "jobs/train-a/log" in seen.message


def test_a_trainer_that_is_killed_fails_its_task_and_the_next_gets_a_new_one(bench: Bench) -> None:
    bench.start("train-a-0", "a", signal=signal.SIGKILL)
    bench.start("train-a-1", "a")

    killed = bench.ended("train-a-0")

    assert (killed.state, killed.exit_code, killed.reason) == (JobState.FAILED, 137, "Killed")
    assert bench.ended("train-a-1").state is JobState.SUCCEEDED


def test_a_trainer_that_crashes_says_so(bench: Bench) -> None:
    bench.start("train-a", "a", signal=signal.SIGSEGV)

    seen = bench.ended("train-a")

    assert (seen.exit_code, seen.reason) == (139, "Died")


def test_a_trainer_that_cannot_start_says_why(open_backend: OpenBench) -> None:
    bench = open_backend(processes=ProcessSettings(trainer=("/no/such/python",)))
    bench.start("train-a", "a")

    seen = bench.ended("train-a")

    assert (seen.exit_code, seen.reason) == (126, "CannotRun")
    assert "/no/such/python" in seen.message


def test_discarding_a_waiting_job_forgets_it(open_backend: OpenBench, meeting: Meet) -> None:
    bench = open_backend(max_concurrent=1)
    first = meeting("first")
    bench.start("train-a", "a", meet=str(first.path))
    bench.start("train-b", "b", log="was done")
    first.join()

    bench.backend.discard("train-b")
    first.release()
    bench.ended("train-a")

    assert bench.states() == {"train-a": "SUCCEEDED"}
    assert not (bench.folder / "jobs/train-b/log").exists()


def test_discarding_a_job_at_work_ends_it_with_a_checkpoint_and_frees_its_place(
    open_backend: OpenBench, meeting: Meet, tmp_path: Path
) -> None:
    bench = open_backend(max_concurrent=1)
    late = meeting("late")
    bench.start("train-a", "a", meet=str(late.path), tell=str(tmp_path / "a"))
    late.join()

    bench.backend.discard("train-a")
    bench.start("train-b", "b")
    bench.ended("train-b")

    assert bench.states() == {"train-b": "SUCCEEDED"}
    assert (bench.folder / "jobs/train-a/checkpoint").read_text() == "left in time"
    assert not psutil.pid_exists(about(tmp_path / "a")["pid"])


def test_a_discarded_job_can_be_started_again(bench: Bench, meeting: Meet) -> None:
    late = meeting("late")
    bench.start("train-a", "a", meet=str(late.path))
    late.join()
    bench.backend.discard("train-a")
    bench.start("train-a", "a")

    assert bench.ended("train-a").state is JobState.SUCCEEDED


def test_discarding_what_is_not_there_is_no_error(bench: Bench) -> None:
    bench.backend.discard("train-z")

    assert bench.states() == {}


def test_a_process_that_does_not_end_when_asked_is_killed(open_backend: OpenBench, meeting: Meet, tmp_path: Path) -> None:
    bench = open_backend(processes=replace(STAND_INS, grace_seconds=0.2))
    late = meeting("late")
    bench.start("train-a", "a", deaf=True, meet=str(late.path), tell=str(tmp_path / "a"))
    late.join()

    bench.backend.close()

    assert not psutil.pid_exists(about(tmp_path / "a")["pid"])
    assert bench.backend.observe()["train-a"].exit_code == 137


def test_a_process_that_waits_for_work_and_does_not_hear_the_signal_hears_that_there_will_be_none(bench: Bench) -> None:
    bench.start("train-a", "a", deaf=True)
    bench.ended("train-a")
    process = bench.backend._children["a"].process

    bench.backend.close()

    assert process.returncode == 0


def test_closing_lets_every_task_leave_its_checkpoint(bench: Bench, meeting: Meet) -> None:
    at = {site: meeting(site) for site in "ab"}
    for site, place in at.items():
        bench.start(f"train-{site}", site, meet=str(place.path))
    bench.start("train-c", "c")
    for place in at.values():
        place.join()

    bench.backend.close()

    seen = bench.backend.observe()
    assert {name: (job.exit_code, job.reason) for name, job in seen.items()} == {
        "train-a": (143, "Terminated"),
        "train-b": (143, "Terminated"),
        "train-c": (None, ""),
    }
    assert all((bench.folder / f"jobs/train-{site}/checkpoint").exists() for site in "ab")


def test_a_door_opened_again_sees_what_ended_and_forgets_what_did_not(open_backend: OpenBench) -> None:
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


def without_progress(seen: JobStatus) -> JobStatus:
    return replace(seen, progress=None)


def test_a_trainer_gets_no_store_credentials_and_a_worker_does(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the operator")
    monkeypatch.setenv("FEDPIPE_CACHE", "/somewhere")
    bench.start("train-a", "a", tell=str(tmp_path / "trainer"))
    bench.start("aggregate", kind="aggregate", tell=str(tmp_path / "worker"))
    bench.ended("train-a"), bench.ended("aggregate")

    trainer, worker = about(tmp_path / "trainer")["environment"], about(tmp_path / "worker")["environment"]

    assert not [name for name in trainer if name.startswith("AWS_")]
    assert trainer["FEDPIPE_CACHE"] == "/somewhere"
    assert "AWS_SECRET_ACCESS_KEY" in worker


def test_a_sites_processors_are_limited(bench: Bench, tmp_path: Path) -> None:
    bench.start("train-a", "a", limits=Limits(cpus=1), tell=str(tmp_path / "a"))
    bench.ended("train-a")

    told = about(tmp_path / "a")

    assert told["environment"]["OMP_NUM_THREADS"] == "1"
    assert len(told["cpus"]) == 1


def test_ctrl_c_in_the_terminal_does_not_reach_a_trainer(bench: Bench, tmp_path: Path) -> None:
    bench.start("train-a", "a", tell=str(tmp_path / "a"))
    bench.ended("train-a")

    told = about(tmp_path / "a")

    assert told["session"] == told["pid"] != os.getsid(0)


def test_waiting_ends_when_something_changed_and_not_before(bench: Bench) -> None:
    bench.backend.observe()

    assert not bench.backend.wait(0.01)

    bench.start("train-a", "a")
    assert bench.backend.wait(60)
