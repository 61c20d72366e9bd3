"""The inexact methods and plain averaging, by hand-made numbers."""

from functools import partial

import numpy as np
import pytest

from fedpipe_operator.aggregation import METHODS, CannotAggregateError
from fedpipe_operator.aggregation.dense import average
from fedpipe_operator.aggregation.values import Factors, Merged, Outline, Part, Share

ONE = Part(samples=1, scale=2.0, factors=Factors(b=np.float32([[4], [8]]), a=np.float32([[1, 3]])))
TWO = Part(samples=3, scale=4.0, factors=Factors(b=np.float32([[1, 1], [0, 2]]), a=np.float32([[5, -1], [4, 8]])))
BEFORE = Factors(b=np.float32([[1, 2, 3], [4, 5, 6]]), a=np.float32([[1, 2], [3, 4], [5, 6]]))


def outline(*ranks: int, global_rank: int = 0) -> Outline:
    shares = tuple(Share(site=f"site-{i}", samples=1, rank=rank) for i, rank in enumerate(ranks))
    return Outline(weight="layer.0.q", d_out=2, d_in=2, shares=shares, global_rank=global_rank)


def _same(part: Part) -> Part:
    return part


def merged(method: str, parts: list[Part], before: Factors | None, rank: int) -> Merged:
    shares = tuple(Share(site=str(i), samples=part.samples, rank=len(part.factors.a)) for i, part in enumerate(parts))
    found = Outline(weight="layer.0.q", d_out=2, d_in=2, shares=shares, global_rank=len(before.a) if before else 0)
    return METHODS[method].merge(found, [partial(_same, part) for part in parts], before, rank)


def test_zeropad_averages_a_and_scaled_b_apart() -> None:
    result = merged("ZeroPad", [ONE, TWO], None, 2)

    np.testing.assert_array_equal(result.factors.b, np.float32([[5, 3], [4, 6]]))
    np.testing.assert_array_equal(result.factors.a, np.float32([[4, 0], [3, 6]]))
    assert result.truncated_energy == 0


def test_zeropad_keeps_components_that_no_site_trained() -> None:
    result = merged("ZeroPad", [ONE, TWO], BEFORE, 3)

    np.testing.assert_array_equal(result.factors.b[:, 2], BEFORE.b[:, 2])
    np.testing.assert_array_equal(result.factors.a[2], BEFORE.a[2])


def test_fedit_averages_equal_ranks() -> None:
    result = merged("FedIT", [ONE, ONE], None, 1)

    np.testing.assert_array_equal(result.factors.b, 2 * ONE.factors.b)
    np.testing.assert_array_equal(result.factors.a, ONE.factors.a)


def test_fedit_refuses_unequal_ranks_and_names_them() -> None:
    with pytest.raises(CannotAggregateError, match=r"layer\.0\.q has site-0 1, site-1 2: .*Exact"):
        METHODS["FedIT"].rank(outline(1, 2), 64)


@pytest.mark.parametrize("method", ["FedIT", "ZeroPad"])
def test_factors_that_cannot_be_cut_are_not_made_larger_than_allowed(method: str) -> None:
    assert METHODS[method].rank(outline(2, 2, global_rank=3), 3) == 3
    with pytest.raises(CannotAggregateError, match="rank 3 above the largest rank allowed, 2"):
        METHODS[method].rank(outline(2, 2, global_rank=3), 2)


@pytest.mark.parametrize(("allowed", "rank"), [(64, 2), (1, 1)])
def test_exact_takes_what_the_weight_and_the_limit_allow(allowed: int, rank: int) -> None:
    assert METHODS["Exact"].rank(outline(8, 4, global_rank=3), allowed) == rank


def test_dense_tensors_are_averaged_by_samples() -> None:
    found = average([(1, np.float32([[1, 2]])), (3, np.float32([[5, -2]]))])

    np.testing.assert_array_equal(found, np.float32([[4, -1]]))
    assert found.dtype == np.float32


def test_nothing_to_average_is_an_error() -> None:
    with pytest.raises(ValueError, match="no tensor"):
        average([])
