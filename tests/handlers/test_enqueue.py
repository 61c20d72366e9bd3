"""Which event enqueues which key, when, and whether it ends the key's back-off."""

import pytest

from fedpipe_operator.handlers.enqueue import CACHE, TABLE, Event, Key, Subject, Target, keys


class Wards:
    """Two namespaces: `wards` with two runs and one site, `labs` with one site."""

    def run_keys(self, namespace: str) -> list[Key]:
        return [Key("run", "wards", name) for name in ("mine", "other")] if namespace == "wards" else []

    def site_keys(self, namespace: str | None) -> list[Key]:
        found = [Key("site", "wards", "north"), Key("site", "labs", "south")]
        return [key for key in found if namespace in (None, key.namespace)]


SUBJECT = Subject("wards", run="mine", site="north", sites=("north", "east"))
MINE, OTHER, WAITING = Key("run", "wards", "mine"), Key("run", "wards", "other"), Key("run", "wards", "waiting")
NORTH, EAST, SOUTH = Key("site", "wards", "north"), Key("site", "wards", "east"), Key("site", "labs", "south")

EXPECTED = {
    Event.RUN_CHANGED: [MINE],
    Event.RUN_DELETED: [NORTH],
    Event.RUN_STARTED: [NORTH, EAST],
    Event.RUN_FINISHED: [NORTH, EAST],
    Event.AGGREGATION_ENDED: [MINE],
    Event.JOB_CHANGED: [MINE],
    Event.JOB_SLOT_FREED: [WAITING],
    Event.SITE_CHANGED: [NORTH, MINE, OTHER],
    Event.SITE_DELETED: [MINE, OTHER],
    Event.SITE_MEASURED: [NORTH],
    Event.NODE_CHANGED: [NORTH, SOUTH],
    Event.OBJECTS_LISTED: [CACHE],
}


def enqueued(event: Event) -> list[Key]:
    return [key for entry in TABLE[event] for key in keys(entry.target, SUBJECT, Wards(), [WAITING])]


@pytest.mark.parametrize("event", Event)
def test_an_event_enqueues_these_keys(event: Event) -> None:
    assert enqueued(event) == EXPECTED[event]


def test_only_a_change_of_the_run_itself_ends_its_backoff() -> None:
    assert [event for event, entries in TABLE.items() if any(entry.reset_backoff for entry in entries)] == [Event.RUN_CHANGED]


def test_where_many_objects_change_together_one_reconcile_serves_all_changes() -> None:
    many = {Target.RUNS_OF_NAMESPACE, Target.SITES_OF_NAMESPACE, Target.SITES_OF_RUN, Target.ALL_SITES}

    assert {entry.after for entries in TABLE.values() for entry in entries if entry.target in many} == {3.0}


def test_every_target_is_used() -> None:
    assert {entry.target for entries in TABLE.values() for entry in entries} == set(Target)
