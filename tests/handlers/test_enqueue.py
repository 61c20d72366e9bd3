"""Which event enqueues which key, when, and whether it ends the key's back-off."""

import pytest

from fedpipe_operator.handlers.enqueue import CACHE, TABLE, Key, Scope, Subject, Trigger, keys


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
    Trigger.RUN_CHANGED: [MINE],
    Trigger.RUN_DELETED: [NORTH],
    Trigger.RUN_STARTED: [NORTH, EAST],
    Trigger.RUN_FINISHED: [NORTH, EAST],
    Trigger.WORKER_ENDED: [MINE],
    Trigger.JOB_CHANGED: [MINE],
    Trigger.JOB_UNREADY: [MINE],
    Trigger.JOB_SLOT_FREED: [WAITING],
    Trigger.SITE_CHANGED: [NORTH, MINE, OTHER],
    Trigger.SITE_DELETED: [MINE, OTHER],
    Trigger.SITE_MEASURED: [NORTH],
    Trigger.NODE_CHANGED: [NORTH, SOUTH],
    Trigger.OBJECTS_LISTED: [CACHE],
}


def enqueued(trigger: Trigger) -> list[Key]:
    return [key for entry in TABLE[trigger] for key in keys(entry.scope, SUBJECT, Wards(), [WAITING])]


@pytest.mark.parametrize("trigger", Trigger)
def test_an_event_enqueues_these_keys(trigger: Trigger) -> None:
    assert enqueued(trigger) == EXPECTED[trigger]


def test_only_a_change_of_the_run_itself_ends_its_backoff() -> None:
    assert [trigger for trigger, entries in TABLE.items() if any(entry.reset_backoff for entry in entries)] == [Trigger.RUN_CHANGED]


def test_where_many_objects_change_together_one_reconcile_serves_all_changes() -> None:
    many = {Scope.RUNS_OF_NAMESPACE, Scope.SITES_OF_NAMESPACE, Scope.SITES_OF_RUN, Scope.ALL_SITES}

    assert {entry.after for entries in TABLE.values() for entry in entries if entry.scope in many} == {3.0}


def test_every_target_is_used() -> None:
    assert {entry.scope for entries in TABLE.values() for entry in entries} == set(Scope)
