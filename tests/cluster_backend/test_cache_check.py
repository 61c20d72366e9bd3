"""The cache check: what is cached and does not exist, or exists and is not cached, twice in a row."""

from collections.abc import Callable

import pytest

from fedpipe_operator.api.meta import LABEL_RUN
from fedpipe_operator.cluster.api import JOBS, Kind, Plain
from fedpipe_operator.cluster.cache_check import DriftDetector, LiveObjects, NamesByUid, drift

CACHED = {"uid-mine": "mine", "uid-north": "north"}
DELETED = {"uid-north": "north"}
MISSED = CACHED | {"uid-west": "west"}


@pytest.mark.parametrize(("live", "drifted"), [(CACHED, {}), (DELETED, {"uid-mine": "mine"}), (MISSED, {"uid-west": "west"})])
def test_drift_is_what_only_one_of_cache_and_api_server_has(live: NamesByUid, drifted: NamesByUid) -> None:
    assert drift(CACHED, live, CACHED) == drifted


def test_what_entered_or_left_the_cache_during_the_check_has_not_drifted() -> None:
    assert drift(before={}, live={"1": "new"}, after={"1": "new"}) == {}
    assert drift(before={}, live={}, after={"1": "newer"}) == {}
    assert drift(before={"1": "old"}, live={"1": "old"}, after={}) == {}
    assert drift(before={"1": "older"}, live={}, after={}) == {}


def diverged(*drifts: NamesByUid) -> list[str]:
    detector = DriftDetector()
    return [detector.check(one) for one in drifts][-1]


def test_a_cache_has_diverged_if_the_same_object_drifted_in_two_checks_in_a_row() -> None:
    assert diverged({"1": "mine"}) == []
    assert diverged({"1": "mine"}, {"1": "mine"}) == ["mine"]


def test_an_event_that_is_still_on_its_way_is_no_divergence() -> None:
    assert diverged({}, {}) == []
    assert diverged({"1": "mine"}, {}) == []
    assert diverged({"1": "mine"}, {"2": "west"}) == []
    assert diverged({"2": "west"}, {}, {"2": "west"}) == []


def test_a_foreign_job_with_our_labels_is_no_divergence_for_which_the_operator_restarts() -> None:
    """It is in no index, so the list of the API server must not have it either."""
    foreign = {"uid": "1", "name": "mine", "namespace": "wards", "labels": {"fedpipe.io/run": "toy", "fedpipe.io/round": "one"}}

    class OneJob:
        def names(self, kind: Kind, _namespace: str, *, label: str = "", keep: Callable[[Plain], bool] = lambda _: True) -> dict[str, str]:
            return {"1": "mine"} if kind == JOBS and label == LABEL_RUN and keep(foreign) else {}

    assert drift({}, LiveObjects(OneJob(), (), with_nodes=False, selector="").list(), {}) == {}  # type: ignore[arg-type]
