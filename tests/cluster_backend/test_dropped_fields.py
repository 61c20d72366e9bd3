"""An API server whose CRDs are older than the operator drops new fields of a status: nothing is written over and over for them."""

import copy
from pathlib import Path
from typing import Any

import pytest
from crds import default_status
from hypothesis import given
from hypothesis import strategies as st
from smallest_documents import SITE_DOCUMENT
from stand_in_cluster import KubeWorld, StandInApi

from fedpipe_operator.cluster import SiteReconciler, SiteView
from fedpipe_operator.cluster.api import EVENTS, SITES
from fedpipe_operator.cluster.dropped_fields import dropped, without
from fedpipe_operator.cluster.status_writer import ClusterStatusWriter
from fedpipe_operator.errors import TransientError

STATUS_WRITE = "status federatedfinetunes toy"
MESSAGE = (
    "the API server drops status.progress: its CRD of FederatedFineTune is older than the operator; "
    "upgrade the CRDs (the chart's crds.enabled, or the files of crds/)"
)
EVENT = ("StatusFieldsDropped", MESSAGE)


@pytest.fixture
def world(tmp_path: Path) -> KubeWorld:
    """A cluster whose CRD of runs knows no `status.progress`, and a run that trains."""
    world = KubeWorld(tmp_path)
    world.api.unknown_fields = {"progress"}
    world.work_until("train-r1")
    world.reconcile()
    return world


def writes_of(world: KubeWorld, seconds: float, *, times: int = 5) -> int:
    """The status writes of some reconciles with so many seconds between."""
    before = world.api.noted.count(STATUS_WRITE)
    for _ in range(times):
        world.now += seconds
        world.reconcile()
    return world.api.noted.count(STATUS_WRITE) - before


def test_a_status_is_not_written_for_a_field_that_is_dropped_again(world: KubeWorld) -> None:
    assert "progress" not in world.body()["status"]
    assert writes_of(world, seconds=60) == 0


def test_a_run_reaches_its_end_with_no_more_writes_than_where_the_crds_are_new(tmp_path: Path) -> None:
    counts = {}
    for name, unknown in (("new", set()), ("old", {"progress"})):
        world = KubeWorld(tmp_path / name)
        world.api.unknown_fields = unknown
        world.settle()
        for _ in range(3):
            world.reconcile()
        counts[name] = world.api.noted.count(STATUS_WRITE)
        assert world.conditions()["Complete"] == "RoundsCompleted"

    assert counts["old"] <= counts["new"]


def test_an_event_says_once_which_fields_and_what_to_do(world: KubeWorld) -> None:
    world.settle()

    assert [event for event in world.events() if event[0] == EVENT[0]] == [EVENT]


def test_the_log_says_it_too_and_an_event_that_cannot_be_posted_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = KubeWorld(tmp_path)
    world.api.unknown_fields = {"progress"}
    world.api.trouble["create events"] = TransientError("ApiUnavailable", "no route to host")
    world.reconcile()

    assert caplog.text.count("default/toy: the API server drops status.progress") == 1
    assert world.conditions()["Progressing"] == "Profiling"


def test_once_the_crds_are_upgraded_the_field_is_written_within_ten_minutes_without_a_restart(world: KubeWorld) -> None:
    world.api.unknown_fields = set()
    writes = writes_of(world, seconds=60, times=11)

    assert world.body()["status"]["progress"]["stage"] == "Training"
    assert 1 <= writes <= 3


def test_while_the_crds_stay_old_a_write_is_tried_every_ten_minutes(world: KubeWorld) -> None:
    assert writes_of(world, seconds=60, times=30) in (2, 3)


def test_what_somebody_else_changed_in_the_status_is_repaired(world: KubeWorld) -> None:
    world.api.objects["federatedfinetunes", "default", "toy"]["status"]["round"] = 7
    world.api.objects["federatedfinetunes", "default", "toy"]["metadata"]["resourceVersion"] = str(world.api.version + 1)

    assert writes_of(world, seconds=1, times=2) == 1
    assert world.body()["status"]["round"] == 1


def test_a_new_object_of_the_same_name_is_told_of_the_dropped_fields_too(world: KubeWorld) -> None:
    world.runs.forget(world.body())
    del world.api.objects["federatedfinetunes", "default", "toy"]
    world.add(world.run)
    world.reconcile()

    assert [event for event in world.events() if event[0] == EVENT[0]] == [EVENT, EVENT]


def test_a_site_is_not_written_again_for_a_field_that_is_dropped() -> None:
    api = StandInApi(lambda: 1_000_000.0)
    api.unknown_fields = {"capacity"}
    writer = ClusterStatusWriter(api, api.clock)  # type: ignore[arg-type]
    sites = SiteReconciler(writer, api.clock)
    api._put(SITES, "default", "ward", SITE_DOCUMENT | {"status": default_status("EdgeSite")})
    for _ in range(4):
        sites.reconcile(SiteView(body=api.all(SITES)[0], nodes=None, active_runs=0))

    assert api.noted.count("status edgesites ward") == 1
    assert [one["reason"] for one in api.all(EVENTS)].count("StatusFieldsDropped") == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from("abcd"), json_values, max_size=4)


def pruned(value: Any, name: str) -> Any:
    """The value as a schema without this field, anywhere, leaves it."""
    if isinstance(value, dict):
        return {key: pruned(one, name) for key, one in value.items() if key != name}
    return [pruned(one, name) for one in value] if isinstance(value, list) else value


@given(objects, st.sampled_from("abcd"))
def test_without_what_was_dropped_both_are_equal(sent: dict[str, Any], name: str) -> None:
    kept = pruned(copy.deepcopy(sent), name)
    paths = dropped(sent, kept)

    assert without(sent, paths) == kept
    assert without(kept, paths) == kept


@given(objects)
def test_nothing_is_dropped_of_what_is_kept(sent: dict[str, Any]) -> None:
    assert dropped(sent, sent) == frozenset()
