"""The time model."""

import pytest
from fleets import MPNET, a_site, point, speeds

from fedpipe_operator.planning.duration import fixed_seconds, global_bytes, step_seconds, tokens_per_second, wire_bytes
from fedpipe_operator.planning.sizes import uniform_ranks


def test_speed_is_linear_between_measured_batches_and_flat_beyond_them() -> None:
    site = a_site(points=(point(bits=16, batch=2, speed=100), point(bits=16, batch=4, speed=300)))

    assert [tokens_per_second(site, 16, batch) for batch in (1, 2, 3, 4, 64)] == [100, 100, 200, 300, 300]


def test_of_one_batch_at_two_lengths_the_longer_tells_the_speed() -> None:
    site = a_site(points=(point(bits=16, batch=2, length=128, speed=100), point(bits=16, batch=2, length=64, speed=50)))

    assert tokens_per_second(site, 16, 2) == 100


def test_bits_that_were_not_measured_are_as_slow_as_the_slowest_that_were() -> None:
    site = a_site(points=(point(bits=16, batch=1, speed=100), point(bits=4, batch=1, speed=70)))

    assert tokens_per_second(site, 8, 1) == 70


def test_a_site_without_any_measured_step_has_no_speed() -> None:
    with pytest.raises(ValueError, match="'ward' holds no measured training step"):
        tokens_per_second(a_site(points=()), 16, 1)


def test_a_step_takes_its_tokens_over_the_speed() -> None:
    assert step_seconds(a_site(points=speeds(400.0), mean_tokens=50.0), 16, 8) == 1.0


def test_an_update_is_4_bytes_for_each_element_of_its_factors_and_head() -> None:
    site = a_site(base=MPNET)
    factors = 48 * 2 * (768 + 768)

    assert wire_bytes(site, uniform_ranks(MPNET.weights, 2), {}) == 4 * factors
    assert wire_bytes(site, uniform_ranks(MPNET.weights, 2), {"classifier.weight": (20, 768)}) == 4 * (factors + 20 * 768)
    assert global_bytes(site, 2, {}) == 4 * factors


def test_loading_and_transfers_are_paid_whatever_the_steps() -> None:
    site = a_site(up=8e6, down=80e6, load_seconds={16: 3.0, 4: 5.0})

    assert fixed_seconds(site, 16, upload=1_000_000, download=10_000_000) == 3.0 + 1.0 + 1.0
    assert fixed_seconds(site, 8, upload=0, download=0) == 5.0
