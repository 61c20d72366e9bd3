"""Runs that share sites, and operators that share runs."""

import pytest
from deeds import have_ended, made_twice, overlaps, spans_by_site
from wards import SHORT, Ward

pytestmark = pytest.mark.e2e


def test_two_runs_at_the_same_sites_take_turns(ward: Ward) -> None:
    ward.kubectl.apply(ward.site("north"), ward.site("south"), ward.run("first", **SHORT), ward.run("second", **SHORT))

    ended = [ward.wait_until_complete(name) for name in ("first", "second")]
    ward.wait("their Jobs have ended", lambda: have_ended(ward.kubectl))

    spans = spans_by_site(ward.kubectl)
    assert {site: len(found) for site, found in spans.items()} == {"north": 8, "south": 8}
    assert {site: overlaps(found) for site, found in spans.items()} == {"north": [], "south": []}
    assert [run["status"]["history"][0]["updates"] for run in ended] == ["2/2", "2/2"]


def test_a_second_operator_does_no_harm(ward: Ward) -> None:
    ward.operator.scale(2)
    try:
        ward.start("north", **SHORT)
        run = ward.wait_until_complete()
    finally:
        ward.operator.scale(1)

    assert made_twice(ward.kubectl) == []
    assert run["status"]["history"][0]["updates"] == "1/1"
