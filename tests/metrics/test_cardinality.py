"""A thousand sites and a hundred runs: how many series, and which sites they are of."""

import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from large_fleets import RUNS, SITES, a_large_fleet
from prometheus_client import generate_latest
from scrapes import Scrape

from fedpipe_operator.metrics.catalogue import SITES_OF_RUNS
from fedpipe_operator.metrics.collector import fleet_samples
from fedpipe_operator.metrics.run_record import RunRecord
from fedpipe_operator.metrics.site_of_run_series import MOST_PAIRS, MOST_SITES, shared, shown_sites

MOST_SERIES = 60_000


@pytest.fixture(scope="module")
def large() -> Any:
    return a_large_fleet()


def test_a_thousand_sites_and_a_hundred_runs_have_at_most_sixty_thousand_series(large: Any) -> None:
    started = time.perf_counter()
    page = generate_latest(large.registry)
    seconds = time.perf_counter() - started
    scrape = Scrape.of(page.decode())
    print(f"{len(scrape.values)} series, {len(page)} bytes, {seconds:.2f} s")  # noqa: T201 -- shown by pytest -s

    assert len(scrape.values) <= MOST_SERIES
    assert len(page) <= 10 * 2**20
    assert len(scrape.named("site_status_condition", status="true")) == 3 * SITES
    assert len(scrape.named("run_round")) == RUNS


def test_a_scrape_leaves_nothing_behind(large: Any) -> None:
    list(fleet_samples(large.fleet, large.records.snapshot()))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    list(fleet_samples(large.fleet, large.records.snapshot()))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert after - before < 2**20


def test_the_names_of_the_series_of_a_pair_are_as_many_as_the_bound_was_made_for() -> None:
    phases, directions = 4, 2
    a_pair = len(SITES_OF_RUNS) - 2 + phases + directions

    assert a_pair * MOST_PAIRS <= 0.6 * MOST_SERIES


@given(st.dictionaries(st.text(max_size=3), st.integers(min_value=0, max_value=300), max_size=12), st.integers(min_value=0, max_value=400))
def test_pairs_are_shared_so_that_nobody_has_less_than_another_who_wanted_as_much(wanted: dict[str, int], most: int) -> None:
    given_to = shared(wanted, most)

    assert given_to.keys() == wanted.keys()
    assert all(0 <= given_to[key] <= wanted[key] for key in wanted)
    assert sum(given_to.values()) <= most
    short = [key for key in wanted if given_to[key] < wanted[key]]
    assert all(given_to[key] + 1 >= max(given_to.values()) for key in short), "who wants more has as much as anybody, or one less"
    assert sum(given_to.values()) >= min(most, sum(wanted.values())) - len(short), "nothing is left that somebody wants"


def a_record(*sites: str) -> RunRecord:
    return replace(RunRecord("default", "toy"), sites=sites)


def test_a_run_of_many_sites_shows_the_first_of_them() -> None:
    names = tuple(f"site-{number:04d}" for number in range(1000))

    assert list(shown_sites({"uid": a_record(*names)})["uid"]) == list(names[:MOST_SITES])


def test_a_small_run_keeps_all_of_its_sites_beside_large_ones() -> None:
    names = tuple(f"site-{number:04d}" for number in range(1000))
    shown = shown_sites({"small": a_record("one", "two")} | {str(number): a_record(*names) for number in range(100)})

    assert shown["small"] == ("one", "two")
    assert sum(map(len, shown.values())) <= MOST_PAIRS
    assert {len(one) for uid, one in shown.items() if uid != "small"} == {14, 15}
