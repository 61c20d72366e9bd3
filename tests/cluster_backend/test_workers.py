"""The operator's work in processes of its own: started once, watched, ended, never waited for."""

import sys
import threading
from collections.abc import Iterator

import pytest
from cluster_user import wait_until

from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.cluster.workers import Workers
from fedpipe_operator.store.s3 import CREDENTIAL_VARIABLES

JOB = Job("toy-aggregate-r1-a0", TaskKind.AGGREGATE, round=1)
SLOW = "import time; time.sleep(600)"


class Bench:
    """Workers that run a line of Python instead of an aggregation."""

    def __init__(self, line: str) -> None:
        self.ended = threading.Event()
        self.ended_for: list[str] = []
        self.now = 7.0
        self.workers = Workers(lambda: self.now, command=(sys.executable, "-c", line), on_end=self._on_end)

    def _on_end(self, uid: str) -> None:
        self.ended_for.append(uid)
        self.ended.set()

    def start(self, *, seconds: float = 60, **environment: str) -> None:
        self.workers.start("wards", "uid-1", JOB, "{}", environment=environment, seconds=seconds)

    def result(self) -> JobStatus:
        assert self.ended.wait(60)
        return self.workers.statuses("uid-1")[JOB.name]

    def until_running(self, uid: str = "uid-1") -> None:
        def is_running() -> bool:
            return self.workers.statuses(uid)[JOB.name].state is JobState.RUNNING

        wait_until(is_running, f"the process of {uid} runs", seconds=60, explain=lambda: str(self.workers))


@pytest.fixture
def slow() -> Iterator[Bench]:
    bench = Bench(SLOW)
    yield bench
    bench.workers.close()


def test_a_process_that_ends_well_is_observed_and_its_run_is_enqueued() -> None:
    bench = Bench("")
    bench.start()

    assert bench.result() == JobStatus(JOB, JobState.SUCCEEDED, 7.0, exit_code=0)
    assert bench.ended_for == ["uid-1"]


def test_a_process_that_fails_is_seen_with_its_last_words_and_its_exit_code() -> None:
    bench = Bench("import sys; sys.exit('StoreFull: no space left')")
    bench.start()

    result = bench.result()
    assert (result.state, result.exit_code, result.reason, result.message) == (
        JobState.FAILED,
        1,
        "AggregationFailed",
        "StoreFull: no space left",
    )


def test_a_failure_has_the_reason_of_its_kind_of_work() -> None:
    bench = Bench("import sys; sys.exit('no plan')")
    planning = Job("toy-plan-r1-a0", TaskKind.PLAN, round=1)
    bench.workers.start("wards", "uid-1", planning, "{}", environment={}, seconds=60)

    assert bench.ended.wait(60)
    assert bench.workers.statuses("uid-1")[planning.name].reason == "PlanningFailed"


def test_a_process_finds_its_task_and_the_stores_keys() -> None:
    line = "import os, sys; sys.exit(open(sys.argv[1]).read() + os.environ['AWS_ACCESS_KEY_ID'])"
    bench = Bench(line)
    bench.start(AWS_ACCESS_KEY_ID="me")

    assert bench.result().message == "{}me"


def test_a_process_does_not_find_the_operators_own_key_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CREDENTIAL_VARIABLES:
        monkeypatch.setenv(name, "of-the-operator")
    bench = Bench("import os, sys; sys.exit(repr({name: value for name, value in os.environ.items() if 'operator' in value}))")
    bench.start(AWS_ACCESS_KEY_ID="me")

    assert "of-the-operator" not in bench.result().message


def test_processes_that_a_slow_store_holds_up_delay_no_other_namespace(slow: Bench) -> None:
    for number in range(3):
        slow.workers.start("tarpits", f"tarpit-{number}", JOB, "{}", environment={}, seconds=60)
    slow.start()
    assert slow.workers.statuses("uid-1")[JOB.name].state is JobState.PENDING

    slow.now += 31.0
    slow.start()  # as the next reconcile does

    slow.until_running()
    assert slow.workers.statuses("tarpit-2")[JOB.name].state is JobState.PENDING


def test_a_namespace_that_is_not_alone_has_one_process_of_two(slow: Bench) -> None:
    slow.start()
    for number in range(3):
        slow.workers.start("tarpits", f"tarpit-{number}", JOB, "{}", environment={}, seconds=60)
    slow.workers.start("labs", "uid-3", JOB, "{}", environment={}, seconds=60)
    slow.until_running()

    slow.workers.discard("uid-1")

    slow.until_running("uid-3")
    assert [slow.workers.statuses(f"tarpit-{number}")[JOB.name].state for number in (1, 2)] == [JobState.PENDING] * 2


def test_slow_processes_of_many_namespaces_make_room_after_ten_minutes_for_one_that_has_none(slow: Bench) -> None:
    for number in range(6):
        slow.workers.start(f"tarpit-{number}", f"uid-of-{number}", JOB, "{}", environment={}, seconds=6000)
        slow.until_running(f"uid-of-{number}")
        slow.now += 31.0
    slow.start()
    assert slow.workers.statuses("uid-1")[JOB.name].state is JobState.PENDING

    slow.now = 7.0 + 600.0
    slow.start()  # as the next reconcile does

    slow.until_running()
    ended = slow.workers.statuses("uid-of-0")[JOB.name]
    assert (ended.state, ended.reason) == (JobState.FAILED, "Killed")
    assert ended.message.startswith("it had taken more than 10 minutes when another namespace waited, and all 6 places were taken")
    assert slow.workers.statuses("uid-of-1")[JOB.name].state is JobState.RUNNING


def test_a_process_cannot_take_all_of_the_operators_memory() -> None:
    line = "import sys\ntry: bytes(2**29)\nexcept MemoryError: sys.exit('no memory')"
    bench = Bench(line)
    bench.workers.memory_bytes = 2**28
    bench.start()

    assert bench.result().message == "no memory"


def test_a_process_that_is_discarded_makes_room_for_the_next(slow: Bench) -> None:
    for uid in ("first", "second", "uid-1"):
        slow.workers.start("wards", uid, JOB, "{}", environment={}, seconds=60)
    assert slow.workers.statuses("uid-1")[JOB.name].state is JobState.PENDING

    slow.workers.discard("first")

    slow.until_running()


def test_a_process_yields_to_the_operators_reconciles() -> None:
    bench = Bench("import os\nwhile os.getpriority(os.PRIO_PROCESS, 0) <= 0: pass")
    bench.start()

    assert bench.result().state is JobState.SUCCEEDED


def test_a_process_that_takes_too_long_is_ended() -> None:
    bench = Bench(SLOW)
    bench.start(seconds=0.2)

    result = bench.result()
    assert (result.exit_code, result.reason, result.message) == (137, "Killed", "exceeded the deadline of 0 s")


@pytest.mark.parametrize("deadline", [600 * 3600.0, 3.6e33])
def test_a_process_of_a_run_with_a_deadline_of_years_is_waited_for_like_any_other(deadline: float) -> None:
    """It was left to run without end, and its place given to the next: so one namespace could have any number of processes."""
    bench = Bench("")
    bench.start(seconds=deadline)

    assert bench.result().state is JobState.SUCCEEDED


def test_a_job_is_started_once(slow: Bench) -> None:
    slow.start()
    slow.until_running()
    slow.start()

    assert len(slow.workers._processes) == 1


def test_a_job_that_is_discarded_is_ended_and_forgotten(slow: Bench) -> None:
    slow.start()
    slow.until_running()
    process = next(iter(slow.workers._processes.values()))

    slow.workers.discard("uid-1", JOB.name)

    assert process.wait(60) < 0
    assert slow.workers.statuses("uid-1") == {}


def test_no_process_outlives_the_operator(slow: Bench) -> None:
    slow.start()
    slow.until_running()
    process = next(iter(slow.workers._processes.values()))

    slow.workers.close()

    assert process.wait(60) < 0


def test_a_run_sees_its_own_jobs_alone(slow: Bench) -> None:
    slow.start()

    assert slow.workers.statuses("uid-2") == {}


def test_a_process_that_cannot_be_started_is_an_attempt_that_failed() -> None:
    bench = Bench("")
    bench.workers.command = ("/no/such/program",)
    bench.start()

    result = bench.result()
    assert (result.state, result.reason) == (JobState.FAILED, "AggregationFailed")
    assert "could not be started" in result.message
