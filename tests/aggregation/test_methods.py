"""The methods' ranks, the inexact methods and sample-weighted averaging, checked against numbers computed by hand."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fedpipe_operator.aggregation import METHODS, CannotAggregateError
from fedpipe_operator.aggregation.factors import AggregatedFactors, Factors, SiteFactors, SiteWeight, WeightUpdates
from fedpipe_operator.aggregation.global_adapter import combine

ONE = SiteFactors(share=0.25, scale=2.0, factors=Factors(b=np.float32([[4], [8]]), a=np.float32([[1, 3]])))
TWO = SiteFactors(share=0.75, scale=4.0, factors=Factors(b=np.float32([[1, 1], [0, 2]]), a=np.float32([[5, -1], [4, 8]])))
PREVIOUS = Factors(b=np.float32([[1, 2, 3], [4, 5, 6]]), a=np.float32([[1, 2], [3, 4], [5, 6]]))


def updates_of(*ranks: int, global_rank: int = 0) -> WeightUpdates:
    sites = tuple(SiteWeight(site=f"site-{i}", rank=rank, share=1 / len(ranks)) for i, rank in enumerate(ranks))
    return WeightUpdates(weight="layer.0.q", d_out=2, d_in=2, sites=sites, global_rank=global_rank)


def _identity(site: SiteFactors) -> SiteFactors:
    return site


def aggregate(method: str, factors: list[SiteFactors], previous: Factors | None, rank: int, server_rate: float = 1.0) -> AggregatedFactors:
    sites = tuple(SiteWeight(site=str(i), rank=len(site.factors.a), share=site.share) for i, site in enumerate(factors))
    global_rank = len(previous.a) if previous else 0
    updates = WeightUpdates(weight="layer.0.q", d_out=2, d_in=2, sites=sites, global_rank=global_rank, server_rate=server_rate)
    return METHODS[method].aggregate(updates, [partial(_identity, site) for site in factors], previous, rank)


def test_zeropad_averages_a_and_scaled_b_separately() -> None:
    result = aggregate("ZeroPad", [ONE, TWO], None, 2)

    np.testing.assert_array_equal(result.factors.b, np.float32([[5, 3], [4, 6]]))
    np.testing.assert_array_equal(result.factors.a, np.float32([[4, 0], [3, 6]]))
    assert result.truncated_energy == 0


def test_zeropad_keeps_components_that_no_site_trained() -> None:
    result = aggregate("ZeroPad", [ONE, TWO], PREVIOUS, 3)

    np.testing.assert_array_equal(result.factors.b[:, 2], PREVIOUS.b[:, 2])
    np.testing.assert_array_equal(result.factors.a[2], PREVIOUS.a[2])


def test_fedit_averages_equal_ranks() -> None:
    half = replace(ONE, share=0.5)

    result = aggregate("FedIT", [half, half], None, 1)

    np.testing.assert_array_equal(result.factors.b, 2 * ONE.factors.b)
    np.testing.assert_array_equal(result.factors.a, ONE.factors.a)


def test_fedit_refuses_unequal_ranks_and_names_them() -> None:
    with pytest.raises(CannotAggregateError, match=r"layer\.0\.q has site-0 1, site-1 2: .*Exact"):
        METHODS["FedIT"].rank(updates_of(1, 2), 64)


@pytest.mark.parametrize("method", ["FedIT", "ZeroPad"])
def test_factors_that_cannot_be_truncated_are_refused_above_the_largest_rank(method: str) -> None:
    assert METHODS[method].rank(updates_of(2, 2, global_rank=3), 3) == 3
    with pytest.raises(CannotAggregateError, match="rank 3 above the largest rank allowed, 2"):
        METHODS[method].rank(updates_of(2, 2, global_rank=3), 2)


@pytest.mark.parametrize(("allowed", "rank"), [(64, 2), (1, 1)])
def test_exact_has_the_largest_rank_that_the_weight_and_the_limit_allow(allowed: int, rank: int) -> None:
    assert METHODS["Exact"].rank(updates_of(8, 4, global_rank=3), allowed) == rank


def test_zeropad_multiplies_the_step_from_known_components_by_the_servers_rate() -> None:
    start = Factors(b=np.float32([[1], [2]]), a=np.float32([[3, 4]]))
    site = SiteFactors(share=1.0, scale=1.0, factors=Factors(b=np.float32([[2, 5], [4, 6]]), a=np.float32([[4, 4], [7, 8]])))

    result = aggregate("ZeroPad", [site], start, 2, server_rate=3.0)

    np.testing.assert_array_equal(result.factors.b, np.float32([[4, 5], [8, 6]]))
    np.testing.assert_array_equal(result.factors.a, np.float32([[6, 4], [7, 8]]))


@pytest.mark.parametrize(("start", "b", "a"), [(True, [[1.5], [3]], [[3.5, 4]]), (False, [[1], [2]], [[2, 2]])])
def test_zeropad_lets_a_clipped_site_go_a_part_of_its_way(start: bool, b: list[list[float]], a: list[list[float]]) -> None:
    previous = Factors(b=np.float32([[1], [2]]), a=np.float32([[3, 4]])) if start else None
    site = SiteFactors(share=0.5, scale=1.0, factors=Factors(b=np.float32([[2], [4]]), a=np.float32([[4, 4]])))
    one = SiteWeight(site="0", rank=1, share=1.0, clip=0.5)
    updates = WeightUpdates(weight="layer.0.q", d_out=2, d_in=2, sites=(one,), global_rank=int(start))

    result = METHODS["ZeroPad"].aggregate(updates, [partial(_identity, site)], previous, 1)

    np.testing.assert_array_equal(result.factors.b, np.float32(b))
    np.testing.assert_array_equal(result.factors.a, np.float32(a))


def test_head_tensors_are_averaged_by_shares() -> None:
    mean = combine([(0.25, np.float32([[1, 2]])), (0.75, np.float32([[5, -2]]))])

    np.testing.assert_array_equal(mean, np.float32([[4, -1]]))
    assert mean.dtype == np.float32


@pytest.mark.parametrize(("server_rate", "expected"), [(1.0, [4, -1]), (1.5, [5, -2])])
def test_the_servers_rate_multiplies_the_step_of_a_head_tensor(server_rate: float, expected: list[float]) -> None:
    tensors = [(0.25, np.float32([1, 2])), (0.75, np.float32([5, -2]))]

    np.testing.assert_array_equal(combine(tensors, np.float32([2, 1]), server_rate), np.float32(expected))


def test_nothing_to_average_is_an_error() -> None:
    with pytest.raises(ValueError, match="no tensor"):
        combine([])
