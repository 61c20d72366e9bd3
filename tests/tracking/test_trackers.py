"""The threads: no reconcile waits for one, namespaces share them, and a fault in one is that run's."""

import threading
from collections.abc import Callable, Iterator

import pytest
from cluster_user import wait_until
from stand_in_runs import World, a_run

from fedpipe_operator.api import Condition, ConditionStatus
from fedpipe_operator.api.tracking import TrackingSpec
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.rounds import Run
from fedpipe_operator.tracking.trackers import Trackers
from fedpipe_operator.tracking.write import Work


def a_tracked_run(ended: World, namespace: str = "wards", number: int = 1) -> Run:
    resource = ended.run.resource
    spec = resource.spec.model_copy(update={"tracking": TrackingSpec(tensorboard=True)})
    metadata = resource.metadata.model_copy(update={"uid": f"{namespace}-{number}", "namespace": namespace})
    return Run(resource.model_copy(update={"spec": spec, "metadata": metadata}), ended.run.sites)


class Writing:
    """What a thread does: it notes whose trackers it writes, and ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = threading.Event()
        self.failure: Exception | None = None

    def __call__(self, work: Work) -> str:
        self.begun.append(work.run.resource.metadata.uid)
        assert self.may_end.wait(30)
        if self.failure is not None:
            raise self.failure
        return "there"


@pytest.fixture
def writing() -> Iterator[Writing]:
    """Ended after the test."""
    one = Writing()
    yield one
    one.may_end.set()


def work_of(ended: World, run: Run) -> Callable[[], Work]:
    return lambda: Work(run, ended.store, "")


def settled(trackers: Trackers, ended: World, run: Run) -> tuple[str, bool | None]:
    """Reason and truth of the condition once nothing is under way."""
    wait_until(lambda: not trackers._running and not trackers._waiting, "the threads are done", seconds=30)
    found = trackers.sync(run, work_of(ended, run)).observation
    assert found is not None
    return found.reason, found.is_true


def test_a_tracker_that_does_not_answer_is_waited_for_by_nobody(ended: World, writing: Writing) -> None:
    trackers, run = Trackers(lambda: 0.0, writing), a_tracked_run(ended)

    first, second = (trackers.sync(run, work_of(ended, run)) for _ in range(2))

    assert (first.observation, first.requeue_at) == (second.observation, 2.0)
    assert first.observation is not None
    assert (first.observation.reason, first.observation.is_true) == ("Pending", None)
    writing.may_end.set()
    assert settled(trackers, ended, run) == ("TrackersComplete", True)
    assert trackers.sync(run, work_of(ended, run)).requeue_at is None
    assert writing.begun == ["wards-1"], "one at a time, and once"


def test_slow_trackers_of_one_namespace_leave_threads_to_the_others(ended: World, writing: Writing) -> None:
    trackers = Trackers(lambda: 0.0, writing)
    for number in range(20):
        run = a_tracked_run(ended, "slow", number)
        trackers.sync(run, work_of(ended, run))
    other = a_tracked_run(ended, "other")
    now = [0.0]
    trackers.clock = lambda: now[0]
    now[0] = 21.0  # those of the slow namespace count for it only

    trackers.sync(other, work_of(ended, other))

    wait_until(lambda: "other-1" in writing.begun, "the other namespace's is begun", seconds=30)
    assert len(writing.begun) < 16


def test_runs_that_wait_for_a_thread_are_looked_at_less_often_than_those_that_have_one(ended: World, writing: Writing) -> None:
    trackers, runs = Trackers(lambda: 0.0, writing), [a_tracked_run(ended, "slow", number) for number in range(6)]

    found = [trackers.sync(run, work_of(ended, run)).requeue_at for run in runs]

    assert found == [2.0] * 4 + [20.0] * 2


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (TransientError("TrackerUnreachable", "no connection"), "TrackerUnreachable"),
        (UserError("TrackerDenied", "wrong"), "TrackerDenied"),
        (RuntimeError("a bug"), "OperatorFault"),
    ],
)
def test_a_failure_is_the_condition_and_is_tried_again(ended: World, writing: Writing, failure: Exception, reason: str) -> None:
    now = [100.0]
    trackers, run = Trackers(lambda: now[0], writing), a_tracked_run(ended)
    writing.failure = failure
    writing.may_end.set()
    trackers.sync(run, work_of(ended, run))

    assert settled(trackers, ended, run) == (reason, False)
    assert trackers.sync(run, work_of(ended, run)).requeue_at == 110.0
    now[0], writing.failure = 110.0, None
    trackers.sync(run, work_of(ended, run))
    assert settled(trackers, ended, run) == ("TrackersComplete", True)


def test_a_restarted_operator_repeats_what_the_status_says_until_it_knows_more(ended: World, writing: Writing) -> None:
    run = a_tracked_run(ended)
    condition = Condition(type="Tracked", status=ConditionStatus.FALSE, reason="TrackerDenied", message="answers 401")
    status = run.resource.status.model_copy(update={"conditions": (*run.resource.status.conditions, condition)})
    before = Run(run.resource.model_copy(update={"status": status}), run.sites)

    found = Trackers(lambda: 0.0, writing).sync(before, work_of(ended, before)).observation

    assert found == ("Tracked", False, "TrackerDenied", "answers 401")


def test_a_secret_that_is_missing_is_a_failure_of_the_tracker(ended: World, writing: Writing) -> None:
    def prepare() -> Work:
        raise UserError("SecretMissing", "create it")

    trackers, run = Trackers(lambda: 0.0, writing), a_tracked_run(ended)
    trackers.sync(run, prepare)

    assert settled(trackers, ended, run) == ("SecretMissing", False)


def test_who_waits_for_a_run_is_told_when_its_trackers_are_written(ended: World, writing: Writing) -> None:
    told = list[str]()
    trackers, run = Trackers(lambda: 0.0, writing, told.append), a_tracked_run(ended)
    writing.may_end.set()
    trackers.sync(run, work_of(ended, run))

    wait_until(lambda: told, "it is told", seconds=30)
    assert told == ["wards-1"]


def test_of_a_run_that_is_gone_nothing_is_kept(ended: World, writing: Writing) -> None:
    trackers, run = Trackers(lambda: 0.0, writing), a_tracked_run(ended)
    trackers.sync(run, work_of(ended, run))
    trackers.forget("wards-1")
    writing.may_end.set()

    wait_until(lambda: not trackers._running, "the thread is done", seconds=30)
    assert trackers._turns == {}


def test_a_run_without_trackers_has_no_condition(ended: World, writing: Writing) -> None:
    assert Trackers(lambda: 0.0, writing).sync(ended.run, work_of(ended, ended.run)) == (None, None)
    assert Trackers(lambda: 0.0, writing).sync(a_run(), work_of(ended, ended.run)).observation is None
