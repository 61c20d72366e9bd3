"""Two runs share a site."""

import pytest
from fleet_namespace import SHORT, FleetNamespace
from job_history import all_jobs_finished, job_spans_by_site, overlaps

pytestmark = pytest.mark.e2e


def test_two_runs_at_the_same_site_take_turns(namespace: FleetNamespace) -> None:
    namespace.kubectl.apply(namespace.site("north"), namespace.run("first", **SHORT), namespace.run("second", **SHORT))

    runs = [namespace.wait_until_complete(name) for name in ("first", "second")]
    namespace.wait("their Jobs have finished", lambda: all_jobs_finished(namespace.kubectl))

    spans = job_spans_by_site(namespace.kubectl)
    assert {site: len(found) for site, found in spans.items()} == {"north": 6}
    assert {site: overlaps(found) for site, found in spans.items()} == {"north": []}
    assert [run["status"]["history"][0]["updates"] for run in runs] == ["1/1", "1/1"]
