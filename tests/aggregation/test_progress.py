"""How far each site moved a round along its own increment, as dense increments and rounds without its update say."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load
from toy_rounds import HEAD, Fleet

from fedpipe_operator.aggregation import AggregationConfig, aggregate_round
from fedpipe_operator.aggregation.factors import SiteWeight, WeightUpdates
from fedpipe_operator.aggregation.progress import Progress
from fedpipe_operator.api.aggregation import Clipping
from fedpipe_operator.rounds.records import Contribution

CONFIG = AggregationConfig(method="Exact", max_rank=64, clipping=Clipping.NONE)
WEIGHTS = {"q": (12, 10), "v": (10, 14)}
SITES = ("one", "two", "three")
Dense = dict[str, np.ndarray]


def aggregated(fleet: Fleet, previous: bytes | None) -> tuple[dict[str, Contribution], bytes]:
    sink = io.BytesIO()
    commit = aggregate_round(fleet.round_input(previous), CONFIG, sink).commit
    assert commit is not None
    return {one.site: one for one in commit.contributions}, sink.getvalue()


def products(adapter: bytes | None) -> Dense:
    """The dense update of every weight."""
    tensors = load(adapter) if adapter else {}
    return {weight: _product(tensors, weight, WEIGHTS[weight]) for weight in WEIGHTS}


def _product(tensors: dict[str, np.ndarray], weight: str, shape: tuple[int, int]) -> np.ndarray:
    a, b = (tensors.get(f"base_model.model.{weight}.lora_{x}.weight") for x in "AB")
    return np.zeros(shape) if a is None or b is None else b.astype(np.float64) @ a.astype(np.float64)


def inner(first: Dense, second: Dense) -> float:
    return float(sum((first[weight] * second[weight]).sum() for weight in WEIGHTS))


def increment(after: bytes, before: bytes | None) -> Dense:
    new, old = products(after), products(before)
    return {weight: new[weight] - old[weight] for weight in WEIGHTS}


def aggregated_without(fleet: Fleet, site: str, previous: bytes | None) -> bytes:
    """The global adapter of the round if this site's update had been zero: it sends the factors that it started from."""
    tensors, started = fleet.tensors(site), load(previous) if previous else {}
    for weight, rank in fleet.ranks[site].items():
        a, b = (f"base_model.model.{weight}.lora_{x}.weight" for x in "AB")
        if rank:
            tensors[b] = np.zeros_like(tensors[b])
            if a in started:
                tensors[a], tensors[b] = started[a][:rank], started[b][:, :rank] / fleet.plan().plans[site].scale(weight)
    sink, given_ = io.BytesIO(), fleet.round_input(previous)
    aggregate_round(replace(given_, candidates={**given_.candidates, site: fleet.candidate(site, tensors)}), CONFIG, sink)
    return sink.getvalue()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.data())
def test_the_part_of_a_site_is_what_the_round_lacks_without_its_update(data: st.DataObject) -> None:
    ranks = {site: {weight: data.draw(st.integers(0, 4)) for weight in WEIGHTS} for site in SITES}
    ranks["one"]["q"] = 2
    fleet = Fleet(
        WEIGHTS,
        ranks,
        samples={site: data.draw(st.integers(1, 5000)) for site in SITES},
        head={HEAD: (3, 10)},
        steps={site: data.draw(st.integers(1, 100)) for site in SITES},
    )
    previous = None
    for this in (fleet, fleet.next_round()):
        contributions, adapter = aggregated(this, previous)
        whole = increment(adapter, previous)

        for site in SITES:
            rest = increment(aggregated_without(this, site, previous), previous)
            found, expected = contributions[site].progress, 1 - inner(rest, whole) / inner(whole, whole)
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-4 * max(1.0, abs(expected)))
        assert sum(one.progress or 0.0 for one in contributions.values()) == pytest.approx(1, abs=1e-9)
        previous = adapter


def test_the_parts_of_all_sites_add_up_to_one_and_are_those_of_the_dense_increments() -> None:
    fleet = Fleet(WEIGHTS, {"one": {"q": 3, "v": 2}, "two": {"q": 2}, "three": {"v": 1}}, samples={"one": 300, "two": 100, "three": 70})

    contributions, adapter = aggregated(fleet, None)

    whole = increment(adapter, None)
    q, v = (fleet.plan().plans["one"].scale(weight) * _product(fleet.tensors("one"), weight, WEIGHTS[weight]) for weight in ("q", "v"))
    expected = inner({"q": 300 / 400 * q, "v": 300 / 370 * v}, whole) / inner(whole, whole)
    assert contributions["one"].progress == pytest.approx(expected, rel=1e-5)
    assert sum(one.progress or 0.0 for one in contributions.values()) == pytest.approx(1, abs=1e-12)


def updates(*shares: float) -> WeightUpdates:
    sites = tuple(SiteWeight(site=str(index), rank=1, share=share) for index, share in enumerate(shares))
    return WeightUpdates("q", 4, 4, sites, global_rank=0)


def test_a_site_that_moves_against_the_aggregate_has_a_negative_part() -> None:
    """Two sites move by 3, one by −1: together by 5/3 in the mean, by 2 if the third had not moved."""
    progress = Progress()
    progress.add(updates(1 / 3, 1 / 3, 1 / 3), {"0": 3 * 5 / 3, "1": 3 * 5 / 3, "2": -1 * 5 / 3})

    assert progress.part("2") == pytest.approx(-1 / 5)
    assert progress.part("0") == pytest.approx(3 / 5)


def test_the_parts_of_sites_that_all_move_alike_are_their_shares() -> None:
    progress = Progress()
    progress.add(updates(0.5, 0.3, 0.2), dict.fromkeys("012", 4.0))

    assert [progress.part(site) for site in "012"] == [pytest.approx(share) for share in (0.5, 0.3, 0.2)]


def test_a_site_that_trained_no_adapter_has_no_part_in_the_progress() -> None:
    progress = Progress()
    progress.add(updates(1.0), {"0": 4.0})

    assert (progress.part("head-only"), progress.part("0")) == (0.0, 1.0)


def test_updates_that_cancel_each_other_have_no_parts() -> None:
    progress = Progress()
    progress.add(updates(0.5, 0.5), {"0": 0.0, "1": 0.0})

    assert progress.part("0") is None


def test_a_part_that_is_out_of_all_proportion_is_not_told() -> None:
    progress = Progress()
    progress.add(updates(0.5, 0.5), {"0": 1e9 + 1, "1": -1e9})

    assert progress.part("0") is None
