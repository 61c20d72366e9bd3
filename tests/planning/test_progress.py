"""What a round is worth: the predicted progress that the length of a round is chosen by."""

from itertools import pairwise

import numpy as np
import pytest

from fedpipe_operator.planning.progress import round_progress

SAMPLES = 1600.0
BATCH = 16


def progress(*steps: float, more_steps: float = 1.0) -> float:
    """Of sites with 1,600 samples each that take these steps."""
    sites = len(steps)
    return round_progress(np.array(steps), np.full(sites, more_steps), np.full(sites, SAMPLES), BATCH)


def test_in_a_short_round_a_step_is_worth_a_step() -> None:
    assert progress(0.1, 0.1) == pytest.approx(0.1, rel=0.002)


def test_in_a_round_of_six_tenths_of_a_pass_a_step_is_worth_half() -> None:
    assert progress(60, 60) == pytest.approx(30)


def test_further_steps_of_a_round_bring_less_and_less_but_always_something() -> None:
    worth = [progress(steps, steps) for steps in (10, 20, 40, 80, 160)]
    gains = [(after - before) / before for before, after in pairwise(worth)]

    assert all(gain > 0 for gain in gains)
    assert gains == sorted(gains, reverse=True)


def test_the_few_steps_of_a_slow_site_weigh_more_than_the_many_of_a_fast_one() -> None:
    """The harmonic mean of 10 and 90 is 18, of 50 and 50 it is 50, with as many passes over the data."""
    assert progress(10, 90) / progress(50, 50) == pytest.approx(18 / 50)


def test_a_slow_site_that_can_take_smaller_batches_takes_at_most_as_many_steps_as_the_fastest() -> None:
    assert progress(10, 90, more_steps=4) == pytest.approx(progress(10, 90) * (2 / (1 / 40 + 1 / 90)) / 18)
    assert progress(10, 20, more_steps=8) == pytest.approx(progress(10, 20) * 20 / (2 / (1 / 10 + 1 / 20)))


def test_sites_count_by_their_samples() -> None:
    """Where a site has nine times as many samples, its steps count nine times in the mean."""
    worth = round_progress(np.array([30.0, 10.0]), np.ones(2), np.array([9 * SAMPLES, SAMPLES]), BATCH)
    passes = BATCH * 40 / (10 * SAMPLES)

    assert worth == pytest.approx(10 / (9 / 30 + 1 / 10) / (1 + passes / 0.6))


def test_a_site_without_steps_makes_the_round_worth_nothing() -> None:
    assert progress(0, 50) == pytest.approx(0, abs=1e-9)
