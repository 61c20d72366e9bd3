"""Exact aggregation of one weight, compared with the dense result in float64."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_factors import product, random_factors, random_sites, readers_of, updates_of

from fedpipe_operator.aggregation import exact, truncated_svd
from fedpipe_operator.aggregation.factors import AggregatedFactors, Factors, SiteFactors, SiteWeight, WeightUpdates
from fedpipe_operator.aggregation.truncated_svd import ROW_NORM, StackShape

deterministic = settings(derandomize=True, deadline=None, max_examples=60)
RANKS = st.lists(st.integers(1, 64), min_size=1, max_size=5)
SHAPES = st.tuples(st.integers(1, 90), st.integers(1, 90))
SEEDS = st.integers(0, 2**32 - 1)
UNLIMITED = 10_000


def expected_product(sites: Sequence[SiteFactors], previous: Factors | None, server_rate: float = 1.0) -> np.ndarray:
    update = np.zeros((len(sites[0].factors.b), sites[0].factors.a.shape[1])) if previous is None else product(previous)
    for p in sites:
        start = 0.0 if previous is None else product(Factors(b=previous.b[:, : len(p.factors.a)], a=previous.a[: len(p.factors.a)]))
        update = update + server_rate * p.share * (p.scale * product(p.factors) - start)
    return update


def aggregate(
    sites: Sequence[SiteFactors], previous: Factors | None = None, max_rank: int = UNLIMITED, server_rate: float = 1.0
) -> AggregatedFactors:
    updates = updates_of(sites, previous, server_rate)
    return exact.aggregate(updates, readers_of(sites), previous, exact.rank(updates, max_rank))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@deterministic
@given(SEEDS, SHAPES, RANKS)
def test_without_truncation_the_result_equals_the_dense_one(seed: int, shape: tuple[int, int], ranks: list[int]) -> None:
    rng = np.random.default_rng(seed)
    sites = random_sites(rng, shape, ranks)

    result = aggregate(sites)

    assert distance(product(result.factors), expected_product(sites, None)) < 1e-6
    assert result.truncated_energy < 1e-12


@deterministic
@given(SEEDS, SHAPES, RANKS, st.integers(1, 40))
def test_the_truncation_is_the_best_of_its_rank_and_its_lost_energy_is_reported(
    seed: int, shape: tuple[int, int], ranks: list[int], max_rank: int
) -> None:
    rng = np.random.default_rng(seed)
    sites = random_sites(rng, shape, ranks)
    dense = expected_product(sites, None)
    energies = np.linalg.svd(dense, compute_uv=False) ** 2

    result = aggregate(sites, max_rank=max_rank)

    lost = energies[max_rank:].sum() / energies.sum()
    assert abs(result.truncated_energy - lost) < 1e-9
    assert abs(distance(product(result.factors), dense) - lost**0.5) < 1e-6


@deterministic
@given(SEEDS, SHAPES, RANKS, RANKS, RANKS)
def test_three_rounds_with_a_frozen_residual_equal_the_dense_recursion(
    seed: int, shape: tuple[int, int], first: list[int], second: list[int], third: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    previous = None
    for ranks in (first, second, third):
        sites = random_sites(rng, shape, ranks)
        result = aggregate(sites, previous)

        assert distance(product(result.factors), expected_product(sites, previous)) < 1e-6
        previous = result.factors


@deterministic
@given(SEEDS, SHAPES, RANKS, RANKS, st.floats(1, 8))
def test_the_servers_rate_multiplies_the_averaged_increment(
    seed: int, shape: tuple[int, int], first: list[int], second: list[int], server_rate: float
) -> None:
    rng = np.random.default_rng(seed)
    previous = aggregate(random_sites(rng, shape, first)).factors
    sites = random_sites(rng, shape, second)

    result = aggregate(sites, previous, server_rate=server_rate)

    assert distance(product(result.factors), expected_product(sites, previous, server_rate)) < 1e-6


def test_a_low_rank_site_does_not_change_the_frozen_residual() -> None:
    rng = np.random.default_rng(0)
    previous = aggregate([random_factors(rng, (20, 30), 8)]).factors
    start = SiteFactors(share=1.0, scale=2.0, factors=Factors(b=previous.b[:, :3] / np.float32(2), a=previous.a[:3]))

    result = aggregate([start], previous)

    assert distance(product(result.factors), product(previous)) < 1e-6


@deterministic
@given(SEEDS, SHAPES, st.integers(1, 64))
def test_the_aggregate_of_a_single_site_in_round_1_is_its_update(seed: int, shape: tuple[int, int], rank: int) -> None:
    only = random_factors(np.random.default_rng(seed), shape, rank)

    result = aggregate([only])

    assert distance(product(result.factors), only.scale * product(only.factors)) < 1e-6


@deterministic
@given(SEEDS, st.integers(1, 16), st.integers(1, 6))
def test_equal_ranks_and_equal_a_reproduce_the_mean_of_b(seed: int, rank: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    first, *others = random_sites(rng, (40, 50), [rank] * count)
    sites = [first, *(replace(p, factors=Factors(b=p.factors.b, a=first.factors.a)) for p in others)]
    mean = sum(p.share * p.scale * p.factors.b.astype(np.float64) for p in sites)

    result = aggregate(sites, max_rank=rank)

    assert distance(product(result.factors), mean @ first.factors.a) < 1e-6
    assert result.truncated_energy < 1e-12


@pytest.mark.parametrize("deviation", [0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("opposed", [False, True])
def test_nearly_dependent_factors_lose_no_accuracy(deviation: float, *, opposed: bool) -> None:
    rng = np.random.default_rng(0)
    common = random_factors(rng, (120, 100), 8)
    sites = []
    for site in range(6):
        noise = random_factors(rng, (120, 100), 8).factors
        sign = -1 if opposed and site % 2 else 1
        b = (sign * common.factors.b + deviation * noise.b).astype(np.float32)
        a = (common.factors.a + deviation * noise.a).astype(np.float32)
        sites.append(SiteFactors(share=(10 + site) / 75, scale=1.0, factors=Factors(b=b, a=a)))

    result = aggregate(sites)

    assert distance(product(result.factors), expected_product(sites, None)) < 1e-6


def test_factors_of_very_different_size_lose_no_accuracy() -> None:
    rng = np.random.default_rng(1)
    sites = []
    for size in (1e-12, 1e-4, 1.0, 1e4, 1e12):
        sample = random_factors(rng, (60, 50), 4)
        factors = Factors(b=sample.factors.b * np.float32(size), a=sample.factors.a / np.float32(size))
        sites.append(SiteFactors(share=0.2, scale=1.0, factors=factors))

    result = aggregate(sites)

    assert distance(product(result.factors), expected_product(sites, None)) < 1e-6


def test_a_zero_update_stays_trainable() -> None:
    b, a = np.zeros((9, 3), np.float32), np.ones((3, 7), np.float32)

    result = aggregate([SiteFactors(share=1.0, scale=1.0, factors=Factors(b=b, a=a))])

    assert not product(result.factors).any()
    np.testing.assert_allclose(np.linalg.norm(result.factors.a, axis=1), ROW_NORM, rtol=1e-6)
    assert result.truncated_energy == 0


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_components_are_in_singular_value_order_with_a_fixed_sign_and_row_norm(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    sites = random_sites(rng, shape, (16, 8, 2))

    factors = aggregate(sites, max_rank=12).factors

    b, a = factors.b.astype(np.float64), factors.a.astype(np.float64)
    singular = np.linalg.svd(expected_product(sites, None), compute_uv=False)[:12]
    np.testing.assert_allclose(a @ a.T, ROW_NORM**2 * np.eye(12), atol=1e-6)
    np.testing.assert_allclose(b.T @ b, np.diag((singular / ROW_NORM) ** 2), atol=1e-5 * singular[0] ** 2)
    assert (a[np.arange(12), np.abs(a).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("shape", [(50, 30), (30, 50), (64, 64)])
@pytest.mark.parametrize("algorithm", sorted(truncated_svd.ALGORITHMS))
def test_every_algorithm_captures_the_same_energy(algorithm: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    sites = random_sites(rng, shape, (8, 8, 4))
    dense = expected_product(sites, None)
    energies = np.linalg.svd(dense, compute_uv=False) ** 2

    stack_shape = StackShape(d_out=shape[0], d_in=shape[1], components=20, rank=5)
    summands = exact.summands(updates_of(sites), readers_of(sites), None)
    basis, image, energy = truncated_svd.ALGORITHMS[algorithm](summands, stack_shape)

    np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(image, dense @ basis.T, rtol=1e-10, atol=1e-10)
    tolerance = 1e-6 if algorithm == "Iterative" else 1e-10
    np.testing.assert_allclose(np.linalg.norm(image) ** 2, energies[:5].sum(), rtol=tolerance)
    np.testing.assert_allclose(energy, energies.sum(), rtol=tolerance)


def test_a_stack_larger_than_the_weight_is_not_formed() -> None:
    rng = np.random.default_rng(4)
    sites = random_sites(rng, (300, 280), [16] * 40)
    peaks = []

    def read(number: int) -> SiteFactors:
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        return sites[number]

    updates = updates_of(sites)
    tracemalloc.start()
    try:
        result = exact.aggregate(updates, [partial(read, number) for number in range(len(sites))], None, 8)
    finally:
        tracemalloc.stop()

    assert max(peaks[1:]) < 3 * 300 * 280 * 8
    lost = np.linalg.svd(expected_product(sites, None), compute_uv=False)[8:]
    np.testing.assert_allclose(
        distance(product(result.factors), expected_product(sites, None)),
        np.linalg.norm(lost) / np.linalg.norm(expected_product(sites, None)),
        atol=1e-6,
    )


def test_golden_numbers_of_two_sites_of_different_rank() -> None:
    """By hand: 1/4·2·[3,0]ᵀ[1,0] + 3/4·1·([1,0]ᵀ[0,1] + [0,4]ᵀ[0,1]) = [[1.5, 0.75], [0, 3]]."""
    one = SiteFactors(share=0.25, scale=2.0, factors=Factors(b=np.float32([[3], [0]]), a=np.float32([[1, 0]])))
    two = SiteFactors(share=0.75, scale=1.0, factors=Factors(b=np.float32([[1, 0], [0, 4]]), a=np.float32([[0, 1], [0, 1]])))

    result = aggregate([one, two])
    truncated = aggregate([one, two], max_rank=1)

    np.testing.assert_allclose(product(result.factors), [[1.5, 0.75], [0, 3]], atol=1e-6)
    np.testing.assert_allclose(product(truncated.factors), [[0.143448, 0.953982], [0.441129, 2.933669]], atol=1e-6)
    assert truncated.truncated_energy == pytest.approx(0.1761555, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "count", "rank", "algorithm"),
    [
        ((4096, 4096), 64, 16, "Direct"),
        ((4096, 4096), 256, 16, "Iterative"),
        ((4096, 4096), 256, 100, "Direct"),
        ((576, 576), 1024, 64, "Dense"),
        ((4096, 1024), 1025, 16, "Iterative"),
        ((4096, 4096), 1024, 16, "Iterative"),
        ((4096, 4096), 8192, 16, "Iterative"),
        ((4096, 4096), 1024, 512, "Direct"),
    ],
)
def test_the_fastest_algorithm_within_the_memory_budget_is_chosen(shape: tuple[int, int], count: int, rank: int, algorithm: str) -> None:
    assert truncated_svd.fastest_algorithm(StackShape(d_out=shape[0], d_in=shape[1], components=count, rank=rank)) == algorithm


@pytest.mark.parametrize(
    ("ranks", "server_rate", "kept"),
    [
        ([4, 2, 1], 1.0, [0, 0.25, 0.5, 0.5, 1]),
        ([5, 9, 5], 1.0, [0, 0, 0, 0, 0]),
        ([4, 2, 1], 1.5, [-0.5, -0.125, 0.25, 0.25, 1]),
    ],
)
def test_components_that_every_site_trained_are_replaced_not_added_to(ranks: list[int], server_rate: float, kept: list[float]) -> None:
    sites = tuple(SiteWeight(site=str(i), rank=r, share=p) for i, (r, p) in enumerate(zip(ranks, (0.5, 0.25, 0.25), strict=True)))

    assert list(exact.kept_fractions(WeightUpdates("w", 10, 10, sites, global_rank=5, server_rate=server_rate))) == kept
