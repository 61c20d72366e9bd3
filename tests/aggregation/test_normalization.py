"""How increments of sites that took different numbers of steps are combined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_operator.aggregation.normalization import MAX_SERVER_RATE, LocalWork, by_data, by_effective_steps, power_of_steps

deterministic = settings(derandomize=True, deadline=None, max_examples=200)
WORK = st.lists(st.builds(LocalWork, st.integers(1, 10**6), st.floats(0.1, 1e5)), min_size=1, max_size=20)


def coefficients(work: list[LocalWork], *, limited: bool = True) -> np.ndarray:
    combination = by_effective_steps(work) if limited else power_of_steps(work, 1.0)
    return combination.server_rate * np.array(combination.shares)


@deterministic
@given(WORK)
def test_without_a_limit_the_coefficients_are_those_of_fednova(work: list[LocalWork]) -> None:
    data = np.array([site.samples for site in work]) / sum(site.samples for site in work)
    steps = np.array([site.effective_steps for site in work])

    np.testing.assert_allclose(coefficients(work, limited=False), (data @ steps) * data / steps, rtol=1e-12)


@deterministic
@given(WORK)
def test_the_limit_changes_the_length_of_the_update_and_not_its_direction(work: list[LocalWork]) -> None:
    published, limited = power_of_steps(work, 1.0), by_effective_steps(work)

    assert limited.shares == published.shares
    assert limited.server_rate == min(MAX_SERVER_RATE, published.server_rate)


@deterministic
@given(WORK)
def test_the_shares_add_up_to_1_and_the_servers_rate_is_at_least_1(work: list[LocalWork]) -> None:
    combination = by_effective_steps(work)

    assert sum(combination.shares) == pytest.approx(1, abs=1e-12)
    assert 1 <= combination.server_rate <= MAX_SERVER_RATE


@deterministic
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=20), st.floats(0.1, 1e5))
def test_with_equal_steps_the_shares_are_those_of_the_data(samples: list[int], steps: float) -> None:
    combination = by_effective_steps([LocalWork(count, steps) for count in samples])

    np.testing.assert_allclose(combination.shares, [count / sum(samples) for count in samples], rtol=1e-12)
    assert combination.server_rate == pytest.approx(1, abs=1e-12)


def test_a_site_that_takes_more_steps_has_no_more_influence_on_the_direction() -> None:
    slow, fast = LocalWork(100, 4), LocalWork(100, 8)
    increments = np.array([[4.0, 0.0], [0.0, 8.0]])  # each step moves by 1, each site in its own direction

    step = coefficients([slow, fast]) @ increments

    np.testing.assert_allclose(step, [3, 3])  # half of the mean number of steps, 6, in each direction


def test_few_steps_are_not_extrapolated_to_many() -> None:
    slow, fast = LocalWork(100, 1), LocalWork(100, 99)

    step = coefficients([slow, fast]) @ np.array([[1.0, 0.0], [0.0, 99.0]])

    np.testing.assert_allclose(step, [1.5 * 0.99, 1.5 * 0.99])  # and not half of the mean number of steps, 25


def test_by_data_the_steps_do_not_count() -> None:
    combination = by_data([LocalWork(100, 4), LocalWork(300, 32)])

    assert (combination.shares, combination.server_rate) == ((0.25, 0.75), 1.0)
