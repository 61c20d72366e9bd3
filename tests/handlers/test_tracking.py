"""Which runs are active, and which wait for a job slot of a site."""

from fedpipe_operator.handlers.enqueue import Key
from fedpipe_operator.handlers.tracking import ActiveRuns, WaitingRuns

MINE, OTHER = Key("run", "wards", "mine"), Key("run", "wards", "other")


def test_a_run_starts_once_and_finishes_once() -> None:
    active = ActiveRuns()

    assert [active.update("uid", MINE, is_over=over) for over in (False, False, True, True)] == [True, False, True, False]


def test_an_active_run_is_found_by_its_uid() -> None:
    active = ActiveRuns()
    active.update("uid", MINE, is_over=False)

    assert (active.key_of("uid"), active.key_of("unknown")) == (MINE, None)
    active.remove("uid")
    assert active.key_of("uid") is None


def test_a_run_that_was_over_when_it_was_first_seen_neither_starts_nor_finishes() -> None:
    active = ActiveRuns()

    assert not active.update("uid", MINE, is_over=True)
    assert active.key_of("uid") is None


def test_the_runs_that_wait_for_a_site_are_taken_once_and_those_of_other_sites_stay() -> None:
    waiting = WaitingRuns()
    for site, key in (("north", MINE), ("north", OTHER), ("north", MINE), ("south", OTHER)):
        waiting.add("wards", site, key)

    assert waiting.pop("wards", "north") == {MINE, OTHER}
    assert waiting.pop("wards", "north") == set()
    assert waiting.pop("labs", "south") == set()
    assert waiting.pop("wards", "south") == {OTHER}
