"""An increment is clipped to a multiple of what is usual in the round, and honest ones are not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_operator.aggregation.clipping import clip_factors

deterministic = settings(derandomize=True, deadline=None, max_examples=300)


def test_a_long_increment_is_clipped_to_the_multiple_of_the_median() -> None:
    lengths = {"q": {"a": 1.0, "b": 2.0, "c": 30.0}}

    assert clip_factors(lengths, 3.0) == {"q": {"c": pytest.approx(6 / 30)}}


@deterministic
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=7), st.integers(0, 6), st.floats(1, 1e30))
def test_a_minority_cannot_lift_the_bound_above_the_multiple_of_an_honest_length(honest: list[float], bad: int, huge: float) -> None:
    bad = min(bad, len(honest) - 1)
    lengths = {f"honest-{i}": length for i, length in enumerate(honest)} | {f"bad-{i}": huge * 1e3 for i in range(bad)}

    factors = clip_factors({"q": lengths}, 3.0).get("q", {})

    if len(lengths) >= 3:
        assert all(length * factors.get(site, 1.0) <= 3 * max(honest) * (1 + 1e-9) for site, length in lengths.items())


@deterministic
@given(st.lists(st.floats(1, 2.9), min_size=3, max_size=20))
def test_lengths_that_differ_by_less_than_the_multiple_are_never_clipped(lengths: list[float]) -> None:
    assert clip_factors({"q": {str(index): length for index, length in enumerate(lengths)}}, 3.0) == {}


def test_a_weight_that_fewer_than_three_sites_moved_is_measured_by_the_longest_usual_of_the_others() -> None:
    lengths = {
        "q": {"a": 1.0, "b": 1.0, "c": 1.0},
        "v": {"a": 4.0, "b": 5.0, "c": 5.0},
        "rare": {"a": 1.0, "b": 1e4},
        "alone": {"c": 14.0},
        "still": {"a": 0.0, "b": 0.0, "c": 1e4},
    }

    assert clip_factors(lengths, 3.0) == {"rare": {"b": pytest.approx(15e-4)}, "still": {"c": pytest.approx(15e-4)}}


def test_two_sites_alone_are_not_clipped_because_no_median_says_which_is_the_outlier() -> None:
    assert clip_factors({"q": {"a": 1.0, "b": 1e4}}, 3.0) == {}
