"""No site's share of a round is above the bound, in whatever way the others are weighted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_operator.aggregation.normalization import LocalWork, by_effective_steps
from fedpipe_operator.shares import capped, max_share

deterministic = settings(derandomize=True, deadline=None, max_examples=300)
SHARES = st.lists(st.floats(0, 1e12), min_size=1, max_size=30).filter(any).map(lambda values: [value / sum(values) for value in values])
BOUNDS = st.floats(0.01, 1)


@deterministic
@given(SHARES, BOUNDS)
def test_capped_shares_add_up_to_1(shares: list[float], most: float) -> None:
    assert sum(capped(shares, most)) == pytest.approx(1, abs=1e-9)


@deterministic
@given(SHARES, BOUNDS)
def test_none_is_above_the_bound_where_it_can_be_kept_and_else_all_are_equal(shares: list[float], most: float) -> None:
    found = capped(shares, most)

    assert max(found) <= max(most, 1 / len(shares)) + 1e-12


@deterministic
@given(SHARES, BOUNDS)
def test_the_order_of_the_sites_stays(shares: list[float], most: float) -> None:
    found = np.array(capped(shares, most))[np.argsort(shares, kind="stable")]

    assert (np.diff(found) >= -1e-12).all()


@deterministic
@given(SHARES, BOUNDS)
def test_a_site_below_the_bound_has_at_least_what_it_had_and_the_others_keep_their_proportions(shares: list[float], most: float) -> None:
    found = np.array(capped(shares, most))
    below = (found < most - 1e-9) & (np.array(shares) > 1e-6)

    if most * len(shares) > 1:
        assert (found[below] >= np.array(shares)[below] - 1e-12).all()
        ratios = found[below] / np.array(shares)[below]
        np.testing.assert_allclose(ratios, ratios[:1].repeat(len(ratios)), rtol=1e-6)


@deterministic
@given(SHARES)
def test_shares_that_none_exceeds_are_unchanged(shares: list[float]) -> None:
    assert capped(shares, max(shares)) == tuple(shares)


def test_the_excess_is_shared_again_where_it_lifts_others_above_the_bound() -> None:
    assert capped([0.6, 0.3, 0.06, 0.04], 0.35) == pytest.approx((0.35, 0.35, 0.18, 0.12))


def test_a_bound_that_cannot_be_kept_makes_all_equal() -> None:
    assert capped([0.9, 0.1], 0.4) == (0.5, 0.5)


@pytest.mark.parametrize(("contributors", "most"), [(1, 1.0), (2, 1.0), (3, 0.5), (100, 0.5)])
def test_by_default_none_outvotes_two_or_more_others(contributors: int, most: float) -> None:
    assert max_share(contributors, None) == most
    assert max_share(contributors, 0.3) == 0.3


def test_samples_of_10_to_the_12_do_not_make_the_global_model_one_sites() -> None:
    """From trust.md: a site's samples are believed, and its share is 1.000000."""
    claims = by_effective_steps([LocalWork(10**12, 10), LocalWork(100, 10), LocalWork(300, 10)])

    assert claims.shares[0] > 0.999999
    assert claims.limited(max_share(3, None)).shares == pytest.approx((0.5, 0.125, 0.375))
