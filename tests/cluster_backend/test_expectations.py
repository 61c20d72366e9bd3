"""What the operator has just done counts until the watch reports it."""

from dataclasses import replace

from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.cluster.expectations import Expectations
from fedpipe_operator.cluster.objects import KubeJob

JOB = KubeJob("default", "toy", "uid-1", Job("toy-a0", TaskKind.TRAIN, "site-a"), created_at=10.0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def known(expectations: Expectations, *watched: KubeJob) -> dict[str, KubeJob]:
    of_run = expectations.of_run("default", "uid-1", {job.job.name: job for job in watched})
    at_site = expectations.at_site("default", "site-a", {job.name: job for job in watched})
    assert list(of_run.values()) == list(at_site.values())
    return of_run


def test_a_job_just_created_is_seen_before_the_watch_knows_it() -> None:
    expectations = Expectations(Clock())
    expectations.created(JOB)

    assert known(expectations) == {"toy-a0": JOB}


def test_the_watch_is_believed_as_soon_as_it_knows_the_job() -> None:
    expectations = Expectations(Clock())
    expectations.created(JOB)
    active_jobs = replace(JOB, ready=1)

    assert known(expectations, active_jobs) == {"toy-a0": active_jobs}


def test_a_job_just_deleted_is_on_its_way_out_and_then_gone() -> None:
    expectations = Expectations(Clock())
    expectations.deleted(JOB)

    assert known(expectations, JOB)["toy-a0"].is_deleting
    assert known(expectations) == {}


def test_a_job_given_up_is_no_longer_active_though_the_watch_has_it_so() -> None:
    expectations = Expectations(Clock())
    expectations.given_up(JOB, "NoNode", "no node")

    assert not known(expectations, JOB)["toy-a0"].is_active


def test_a_job_that_was_ended_after_its_task_has_the_end_of_the_task() -> None:
    expectations = Expectations(Clock())
    expectations.given_up(JOB, "OutOfMemory", "too much", 137)

    seen = known(expectations, JOB)["toy-a0"]
    assert (seen.is_active, seen.reason, seen.message, seen.exit_code) == (False, "OutOfMemory", "too much", 137)


def test_a_new_job_of_the_same_name_is_not_taken_for_the_one_that_was_deleted() -> None:
    expectations = Expectations(Clock())
    expectations.deleted(JOB)
    newer = replace(JOB, created_at=20.0)

    assert known(expectations, newer) == {"toy-a0": newer}


def test_after_a_while_only_the_watch_counts() -> None:
    clock = Clock()
    expectations = Expectations(clock)
    expectations.created(JOB)
    clock.now += 61

    assert known(expectations) == {}


def test_the_jobs_of_others_are_not_among_them() -> None:
    expectations = Expectations(Clock())
    expectations.created(replace(JOB, run_uid="another", job=replace(JOB.job, name="another-a0", site="site-b")))

    assert known(expectations) == {}


def test_a_job_of_another_run_counts_at_its_site_and_one_at_another_site_for_its_run() -> None:
    expectations = Expectations(Clock())
    expectations.created(replace(JOB, run_uid="another"))

    assert expectations.of_run("default", "uid-1", {}) == {}
    assert [job.job.name for job in expectations.at_site("default", "site-a", {}).values()] == ["toy-a0"]
    assert expectations.at_site("elsewhere", "site-a", {}) == {}


def test_two_runs_jobs_of_one_name_are_two_at_their_site() -> None:
    expectations = Expectations(Clock())
    expectations.created(JOB)
    expectations.created(replace(JOB, run_uid="another"))

    assert len(expectations.at_site("default", "site-a", {})) == 2


def test_a_job_that_was_withdrawn_was_never_there() -> None:
    expectations = Expectations(Clock())
    expectations.created(JOB)
    expectations.withdrawn(JOB)

    assert known(expectations) == {}
    assert not expectations._by_group


def test_a_job_that_may_have_been_created_takes_its_place_at_the_site_and_its_run_may_ask_for_it_again() -> None:
    expectations = Expectations(Clock())
    expectations.created(JOB)
    expectations.unanswered(JOB)

    assert expectations.of_run("default", "uid-1", {}) == {}
    assert list(expectations.at_site("default", "site-a", {})) == [JOB.name]

    expectations.created(JOB)
    assert known(expectations) == {"toy-a0": JOB}

    expectations.withdrawn(JOB)
    assert known(expectations) == {}
    assert not expectations._by_group
