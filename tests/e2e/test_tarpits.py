"""Store endpoints that answer one byte a second hold up the runs that name them, and no other."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import pytest
from cluster_user import Plain, condition
from fleet_namespace import SHORT, FleetNamespace, OpenNamespace
from job_history import all_jobs_finished, created_at, finished_at
from tarpit import open_connections, start_tarpit, store_in_tarpit

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]

TARPITS: Final = 8
"""As many as the operator has worker threads."""
REACTION_SECONDS: Final = 20
"""Less than one call to such a store takes until its deadline."""


def held_up_runs(namespace: FleetNamespace) -> list[Plain]:
    """As many as the operator has worker threads, all with the tarpit as their store."""
    return [namespace.run(f"tarpit-{number}", store=store_in_tarpit(namespace), **SHORT) for number in range(TARPITS)]


@pytest.fixture(scope="module")
def tarpits(open_namespace: OpenNamespace) -> Iterator[FleetNamespace]:
    """A namespace whose runs hold up worker threads of the operator."""
    with open_namespace("e2e-tarpits") as namespace:
        start_tarpit(namespace)
        namespace.kubectl.apply(namespace.site("north"), *held_up_runs(namespace))
        namespace.wait("the operator talks to the tarpit", lambda: open_connections(namespace) > 1)
        yield namespace


def reactions(namespace: FleetNamespace) -> dict[str, float]:
    """Seconds from the creation of the honest run to its first Job, and from the end of each Job to the next one, or to the run's end."""
    run, jobs = namespace.get_run(), namespace.kubectl.list("jobs")
    first = min(map(created_at, jobs)) - created_at(run)
    ends = sorted(map(finished_at, jobs))
    starts = [*sorted(map(created_at, jobs))[1:], complete_at(run)]
    return {"first Job": first} | {
        f"after Job {at}": start - end for at, (end, start) in enumerate(zip(ends, starts, strict=True), start=1)
    }


def complete_at(run: Plain) -> float:
    return datetime.fromisoformat(condition(run, "Complete")["lastTransitionTime"]).timestamp()


def test_tarpits_of_one_namespace_cost_a_run_of_another_nothing(tarpits: FleetNamespace, namespace: FleetNamespace) -> None:
    namespace.start("north", **SHORT)
    namespace.wait_until_complete()
    beside = open_connections(tarpits)
    namespace.wait("every Job has finished", lambda: all_jobs_finished(namespace.kubectl))
    found = reactions(namespace)

    print(f"seconds to react, beside {beside} calls of tarpits: {found}")  # noqa: T201
    assert beside > 1, "the tarpits held nothing up while the honest run took place"
    assert max(found.values()) < REACTION_SECONDS


def test_a_run_with_a_tarpit_says_what_is_wrong_with_its_store(tarpits: FleetNamespace) -> None:
    run = tarpits.wait_for_reason("StoreTooSlow", name="tarpit-0")

    assert "tarpit.e2e-tarpits" in condition(run, "Progressing")["message"]
