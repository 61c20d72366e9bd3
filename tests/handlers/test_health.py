"""What the probes say: liveness fails where a new process would do better, readiness where this replica could not act or take over."""

from dataclasses import replace

import pytest

from fedpipe_operator.handlers.health import (
    HUNG_SECONDS,
    SILENT_SECONDS,
    STALE_SECONDS,
    Vitals,
    WatchAge,
    liveness_problems,
    readiness_problems,
)

JOBS = WatchAge("/apis/batch/v1/jobs", requested=100.0, is_established=True)
LEADING = Vitals(in_progress={"run wards/triage": 3.0}, watches=(JOBS,), is_watching=True, is_leader=True, lease_age=1.0)
STANDING_BY = replace(LEADING, in_progress={}, is_leader=False)
UNREACHABLE = replace(LEADING, is_leader=False, lease_age=3600.0, lease_problem="ApiUnavailable: no route to host")


@pytest.mark.parametrize("vitals", [LEADING, STANDING_BY], ids=["leading", "standing by"])
def test_a_replica_that_leads_or_stands_by_is_alive_and_ready(vitals: Vitals) -> None:
    assert (liveness_problems(vitals), readiness_problems(vitals)) == ([], [])


@pytest.mark.parametrize(
    ("vitals", "problem"),
    [
        (
            replace(LEADING, in_progress={"run wards/triage": HUNG_SECONDS + 1, "site wards/north": 2.0}),
            "the reconcile of run wards/triage has taken 1801 s: it hangs",
        ),
        (replace(LEADING, queues_ended=True), "the work queues have ended"),
        (replace(LEADING, elector_ended=True), "the thread that renews the Lease has ended"),
        (
            replace(LEADING, watches=(replace(JOBS, requested=SILENT_SECONDS + 1),)),
            "the watch of /apis/batch/v1/jobs was last requested 721 s ago, and had to be renewed after 330 s",
        ),
    ],
    ids=["a hung reconcile", "ended queues", "an ended elector", "a silent watch"],
)
def test_what_only_a_new_process_repairs_is_no_life_and_no_readiness(vitals: Vitals, problem: str) -> None:
    assert liveness_problems(vitals) == [problem]
    assert readiness_problems(vitals) == [problem]


@pytest.mark.parametrize(
    "vitals",
    [
        Vitals(),
        UNREACHABLE,
        replace(LEADING, in_progress={"run wards/slow": HUNG_SECONDS}),
        replace(LEADING, watches=(replace(JOBS, requested=SILENT_SECONDS),)),
        replace(LEADING, watches=(replace(JOBS, requested=None, is_established=False),)),
    ],
    ids=["before the API server has answered", "without an API server", "a slow reconcile", "a watch that is renewed late", "a first list"],
)
def test_what_a_new_process_would_meet_too_is_no_reason_for_a_restart(vitals: Vitals) -> None:
    assert liveness_problems(vitals) == []


@pytest.mark.parametrize(
    ("vitals", "problem"),
    [
        (Vitals(), "the API server has not answered yet"),
        (
            replace(STANDING_BY, watches=(replace(JOBS, is_established=False),)),
            "the watch of /apis/batch/v1/jobs is not established yet",
        ),
        (replace(STANDING_BY, lease_age=None), "this replica does not lead, and does not know who holds the Lease"),
        (
            replace(STANDING_BY, lease_age=STALE_SECONDS + 1),
            "this replica does not lead, and last read the Lease 16 s ago",
        ),
        (
            UNREACHABLE,
            "this replica does not lead, and last read the Lease 3600 s ago: ApiUnavailable: no route to host",
        ),
    ],
    ids=["starting", "a watch that is missing", "a Lease that was never read", "a Lease that is not read any more", "no API server"],
)
def test_a_replica_that_could_not_take_over_is_not_ready(vitals: Vitals, problem: str) -> None:
    assert readiness_problems(vitals) == [problem]


def test_no_honest_reconcile_hangs() -> None:
    """600 s of calls of its store, and 4,000 calls of the API server to start 1,000 sites."""
    from fedpipe_operator.cluster.run_reconciler import _STORE_SECONDS  # noqa: PLC0415 -- only this test compares the two

    assert HUNG_SECONDS - _STORE_SECONDS >= 4000 * 0.3


def test_no_watch_that_is_renewed_is_silent() -> None:
    """It ends by the client's time limit at the latest, and a request for its renewal is repeated after a minute and a half."""
    assert SILENT_SECONDS > 330 + 60 + 21
