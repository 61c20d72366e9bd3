"""The time model."""

from itertools import product

import pytest
from site_profiles import MPNET, a_site, point, speeds

from fedpipe_operator.planning.sizes import uniform_ranks
from fedpipe_operator.planning.time_model import fixed_seconds, global_bytes, padded_row_tokens, step_seconds, tokens_per_second, wire_bytes


def test_speed_is_linear_between_measured_batches_and_constant_beyond_them() -> None:
    site = a_site(points=(point(bits=16, batch=2, speed=100), point(bits=16, batch=4, speed=300)))

    assert [tokens_per_second(site, 16, batch) for batch in (1, 2, 3, 4, 64)] == [100, 100, 200, 300, 300]


def test_of_two_lengths_of_a_batch_the_one_nearest_to_the_rounds_gives_the_speed() -> None:
    two = (point(bits=16, batch=2, length=128, speed=100), point(bits=16, batch=2, length=64, speed=50))

    assert tokens_per_second(a_site(points=two, mean_tokens=120.0), 16, 2) == 100
    assert tokens_per_second(a_site(points=two, mean_tokens=60.0, longest_tokens=70), 16, 2) == 50
    assert tokens_per_second(a_site(points=two, mean_tokens=96.0, longest_tokens=0), 16, 2) == 100


def test_bits_that_were_not_measured_are_as_slow_as_the_slowest_that_were() -> None:
    site = a_site(points=(point(bits=16, batch=1, speed=100), point(bits=4, batch=1, speed=70)))

    assert tokens_per_second(site, 8, 1) == 70


def test_a_site_without_any_measured_step_has_no_speed() -> None:
    with pytest.raises(ValueError, match="'ward' contains no measured training step"):
        tokens_per_second(a_site(points=()), 16, 1)


def test_the_seconds_of_a_step_are_its_tokens_over_the_speed() -> None:
    assert step_seconds(a_site(points=speeds(400.0), mean_tokens=50.0, longest_tokens=50), 16, 8) == 1.0


def test_rows_are_padded_to_the_longest_of_their_batch() -> None:
    site = a_site(mean_tokens=60.0, longest_tokens=120)

    assert [padded_row_tokens(site, batch) for batch in (1, 2, 4)] == [60.0, 80.0, 96.0]
    assert 119 < padded_row_tokens(site, 1000) < 120


def test_padding_is_that_of_random_pairs_of_uniformly_distributed_lengths() -> None:
    widths = [max(pair) for pair in product(range(1, 121), repeat=2)]

    assert padded_row_tokens(a_site(mean_tokens=60.5, longest_tokens=120), 2) == pytest.approx(sum(widths) / len(widths), rel=0.01)


def test_without_the_longest_sample_no_padding_is_assumed() -> None:
    assert padded_row_tokens(a_site(mean_tokens=60.0, longest_tokens=0), 16) == 60.0


def test_an_update_is_4_bytes_for_each_element_of_its_factors_and_head() -> None:
    site = a_site(base=MPNET)
    factors = 48 * 2 * (768 + 768)

    assert wire_bytes(site, uniform_ranks(MPNET.weights, 2), {}) == 4 * factors
    assert wire_bytes(site, uniform_ranks(MPNET.weights, 2), {"classifier.weight": (20, 768)}) == 4 * (factors + 20 * 768)
    assert global_bytes(site, 2, {}) == 4 * factors


def test_set_up_loading_and_transfers_do_not_depend_on_the_steps() -> None:
    site = a_site(up=8e6, down=80e6, setup_seconds=7.0, load_seconds={16: 3.0, 4: 5.0})

    assert fixed_seconds(site, 16, upload=1_000_000, download=10_000_000) == 7.0 + 3.0 + 1.0 + 1.0
    assert fixed_seconds(site, 8, upload=0, download=0) == 7.0 + 5.0
