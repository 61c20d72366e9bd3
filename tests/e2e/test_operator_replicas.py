"""Two operators serve the same runs."""

import pytest
from fleet_namespace import SHORT, FleetNamespace
from job_history import duplicate_jobs

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]


def test_a_second_operator_does_no_harm(namespace: FleetNamespace) -> None:
    namespace.operator.scale(2)
    try:
        namespace.start("north", **SHORT)
        run = namespace.wait_until_complete()
    finally:
        namespace.operator.scale(1)

    assert duplicate_jobs(namespace.kubectl) == []
    assert run["status"]["history"][0]["updates"] == "1/1"
