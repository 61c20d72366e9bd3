"""Exact aggregation of one weight against the dense float64 truth."""

import tracemalloc
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_operator.aggregation import exact, factorise
from fedpipe_operator.aggregation.values import ROW_NORM, Factors, Merged, Outline, Part, Share

steadily = settings(derandomize=True, deadline=None, max_examples=60)
RANKS = st.lists(st.integers(1, 64), min_size=1, max_size=5)
SHAPES = st.tuples(st.integers(1, 90), st.integers(1, 90))
SEEDS = st.integers(0, 2**32 - 1)
NO_CUT = 10_000


def part(rng: np.random.Generator, shape: tuple[int, int], rank: int) -> Part:
    b, a = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    factors = Factors(b=b.astype(np.float32), a=a.astype(np.float32))
    return Part(samples=int(rng.integers(1, 1000)), scale=float(rng.uniform(0.1, 8)), factors=factors)


def same(given: Part) -> Part:
    return given


def product(factors: Factors) -> np.ndarray:
    return factors.b.astype(np.float64) @ factors.a.astype(np.float64)


def truth(parts: Sequence[Part], before: Factors | None) -> np.ndarray:
    total = sum(p.samples for p in parts)
    update = np.zeros((len(parts[0].factors.b), parts[0].factors.a.shape[1])) if before is None else product(before)
    for p in parts:
        start = 0.0 if before is None else product(Factors(b=before.b[:, : len(p.factors.a)], a=before.a[: len(p.factors.a)]))
        update = update + p.samples / total * (p.scale * product(p.factors) - start)
    return update


def outline_of(parts: Sequence[Part], before: Factors | None = None) -> Outline:
    return Outline(
        weight="w",
        d_out=len(parts[0].factors.b),
        d_in=parts[0].factors.a.shape[1],
        shares=tuple(Share(site=str(i), samples=p.samples, rank=len(p.factors.a)) for i, p in enumerate(parts)),
        global_rank=len(before.a) if before else 0,
    )


def merged(parts: Sequence[Part], before: Factors | None = None, max_rank: int = NO_CUT) -> Merged:
    outline = outline_of(parts, before)
    return exact.merge(outline, [partial(same, part) for part in parts], before, exact.rank(outline, max_rank))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@steadily
@given(SEEDS, SHAPES, RANKS)
def test_without_a_cut_the_result_is_the_dense_truth(seed: int, shape: tuple[int, int], ranks: list[int]) -> None:
    rng = np.random.default_rng(seed)
    parts = [part(rng, shape, rank) for rank in ranks]

    result = merged(parts)

    assert distance(product(result.factors), truth(parts, None)) < 1e-6
    assert result.truncated_energy < 1e-12


@steadily
@given(SEEDS, SHAPES, RANKS, st.integers(1, 40))
def test_the_cut_is_the_best_of_its_rank_and_its_lost_energy_is_told(
    seed: int, shape: tuple[int, int], ranks: list[int], max_rank: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [part(rng, shape, rank) for rank in ranks]
    dense = truth(parts, None)
    energies = np.linalg.svd(dense, compute_uv=False) ** 2

    result = merged(parts, max_rank=max_rank)

    lost = energies[max_rank:].sum() / energies.sum()
    assert abs(result.truncated_energy - lost) < 1e-9
    assert abs(distance(product(result.factors), dense) - lost**0.5) < 1e-6


@steadily
@given(SEEDS, SHAPES, RANKS, RANKS, RANKS)
def test_three_rounds_with_a_frozen_tail_are_the_dense_recursion(
    seed: int, shape: tuple[int, int], first: list[int], second: list[int], third: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    before = None
    for ranks in (first, second, third):
        parts = [part(rng, shape, rank) for rank in ranks]
        result = merged(parts, before)

        assert distance(product(result.factors), truth(parts, before)) < 1e-6
        before = result.factors


def test_a_low_rank_site_leaves_the_tail_it_did_not_train_alone() -> None:
    rng = np.random.default_rng(0)
    before = merged([part(rng, (20, 30), 8)]).factors
    start = Part(samples=5, scale=2.0, factors=Factors(b=before.b[:, :3] / np.float32(2), a=before.a[:3]))

    result = merged([start], before)

    assert distance(product(result.factors), product(before)) < 1e-6


@steadily
@given(SEEDS, SHAPES, st.integers(1, 64))
def test_one_site_alone_in_round_1_is_the_identity(seed: int, shape: tuple[int, int], rank: int) -> None:
    only = part(np.random.default_rng(seed), shape, rank)

    result = merged([only])

    assert distance(product(result.factors), only.scale * product(only.factors)) < 1e-6


@steadily
@given(SEEDS, st.integers(1, 16), st.integers(1, 6))
def test_equal_ranks_and_equal_a_reproduce_the_mean_of_b(seed: int, rank: int, sites: int) -> None:
    rng = np.random.default_rng(seed)
    first, *others = [part(rng, (40, 50), rank) for _ in range(sites)]
    parts = [first, *(Part(p.samples, p.scale, Factors(b=p.factors.b, a=first.factors.a)) for p in others)]
    total = sum(p.samples for p in parts)
    mean = sum(p.samples / total * p.scale * p.factors.b.astype(np.float64) for p in parts)

    result = merged(parts, max_rank=rank)

    assert distance(product(result.factors), mean @ first.factors.a) < 1e-6
    assert result.truncated_energy < 1e-12


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("opposed", [False, True])
def test_nearly_dependent_factors_lose_no_accuracy(apart: float, *, opposed: bool) -> None:
    rng = np.random.default_rng(0)
    common = part(rng, (120, 100), 8)
    parts = []
    for site in range(6):
        noise = part(rng, (120, 100), 8).factors
        sign = -1 if opposed and site % 2 else 1
        b = (sign * common.factors.b + apart * noise.b).astype(np.float32)
        a = (common.factors.a + apart * noise.a).astype(np.float32)
        parts.append(Part(samples=10 + site, scale=1.0, factors=Factors(b=b, a=a)))

    result = merged(parts)

    assert distance(product(result.factors), truth(parts, None)) < 1e-6


def test_factors_of_very_different_size_lose_no_accuracy() -> None:
    rng = np.random.default_rng(1)
    parts = []
    for size in (1e-12, 1e-4, 1.0, 1e4, 1e12):
        drawn = part(rng, (60, 50), 4)
        factors = Factors(b=drawn.factors.b * np.float32(size), a=drawn.factors.a / np.float32(size))
        parts.append(Part(samples=1, scale=1.0, factors=factors))

    result = merged(parts)

    assert distance(product(result.factors), truth(parts, None)) < 1e-6


def test_an_update_of_nothing_stays_trainable() -> None:
    b, a = np.zeros((9, 3), np.float32), np.ones((3, 7), np.float32)

    result = merged([Part(samples=1, scale=1.0, factors=Factors(b=b, a=a))])

    assert not product(result.factors).any()
    np.testing.assert_allclose(np.linalg.norm(result.factors.a, axis=1), ROW_NORM, rtol=1e-6)
    assert result.truncated_energy == 0


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_components_are_in_singular_value_order_with_a_fixed_sign_and_row_norm(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    parts = [part(rng, shape, rank) for rank in (16, 8, 2)]

    factors = merged(parts, max_rank=12).factors

    b, a = factors.b.astype(np.float64), factors.a.astype(np.float64)
    singular = np.linalg.svd(truth(parts, None), compute_uv=False)[:12]
    np.testing.assert_allclose(a @ a.T, ROW_NORM**2 * np.eye(12), atol=1e-6)
    np.testing.assert_allclose(b.T @ b, np.diag((singular / ROW_NORM) ** 2), atol=1e-5 * singular[0] ** 2)
    assert (a[np.arange(12), np.abs(a).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("shape", [(50, 30), (30, 50), (64, 64)])
@pytest.mark.parametrize("way", sorted(factorise.WAYS))
def test_every_way_to_the_basis_catches_the_same_energy(way: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    parts = [part(rng, shape, rank) for rank in (8, 8, 4)]
    dense = truth(parts, None)
    energies = np.linalg.svd(dense, compute_uv=False) ** 2

    size = factorise.Size(d_out=shape[0], d_in=shape[1], components=20, rank=5)
    basis, image, energy = factorise.WAYS[way](exact.pieces(outline_of(parts), [partial(same, part) for part in parts], None), size)

    np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(image, dense @ basis.T, rtol=1e-10, atol=1e-10)
    close = 1e-6 if way == "Iterated" else 1e-10
    np.testing.assert_allclose(np.linalg.norm(image) ** 2, energies[:5].sum(), rtol=close)
    np.testing.assert_allclose(energy, energies.sum(), rtol=close)


def test_a_stack_wider_than_the_weight_is_never_formed() -> None:
    rng = np.random.default_rng(4)
    parts = [part(rng, (300, 280), 16) for _ in range(40)]
    held = []

    def read(number: int) -> Part:
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        return parts[number]

    outline = outline_of(parts)
    tracemalloc.start()
    try:
        result = exact.merge(outline, [partial(read, number) for number in range(len(parts))], None, 8)
    finally:
        tracemalloc.stop()

    assert max(held[1:]) < 3 * 300 * 280 * 8
    lost = np.linalg.svd(truth(parts, None), compute_uv=False)[8:]
    np.testing.assert_allclose(
        distance(product(result.factors), truth(parts, None)), np.linalg.norm(lost) / np.linalg.norm(truth(parts, None)), atol=1e-6
    )


def test_golden_numbers_of_two_sites_of_unequal_rank() -> None:
    """By hand: 1/4·2·[3,0]ᵀ[1,0] + 3/4·1·([1,0]ᵀ[0,1] + [0,4]ᵀ[0,1]) = [[1.5, 0.75], [0, 3]]."""
    one = Part(samples=1, scale=2.0, factors=Factors(b=np.float32([[3], [0]]), a=np.float32([[1, 0]])))
    two = Part(samples=3, scale=1.0, factors=Factors(b=np.float32([[1, 0], [0, 4]]), a=np.float32([[0, 1], [0, 1]])))

    result = merged([one, two])
    cut = merged([one, two], max_rank=1)

    np.testing.assert_allclose(product(result.factors), [[1.5, 0.75], [0, 3]], atol=1e-6)
    np.testing.assert_allclose(product(cut.factors), [[0.143448, 0.953982], [0.441129, 2.933669]], atol=1e-6)
    assert cut.truncated_energy == pytest.approx(0.1761555, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "count", "rank", "way"),
    [
        ((4096, 4096), 64, 16, "Direct"),
        ((4096, 4096), 256, 16, "Iterated"),
        ((4096, 4096), 256, 100, "Direct"),
        ((576, 576), 1024, 64, "Dense"),
        ((4096, 1024), 1025, 16, "Iterated"),
        ((4096, 4096), 1024, 16, "Iterated"),
        ((4096, 4096), 8192, 16, "Iterated"),
        ((4096, 4096), 1024, 512, "Direct"),
    ],
)
def test_the_way_of_least_time_within_the_bounds_of_memory_is_taken(shape: tuple[int, int], count: int, rank: int, way: str) -> None:
    assert factorise.cheapest(factorise.Size(d_out=shape[0], d_in=shape[1], components=count, rank=rank)) == way


@pytest.mark.parametrize(
    ("ranks", "samples", "kept"),
    [([4, 2, 1], [1, 1, 1], [0, 1 / 3, 2 / 3, 2 / 3, 1]), ([5, 9, 5], [10, 20, 41], [0, 0, 0, 0, 0])],
)
def test_components_that_every_site_trained_are_replaced_not_added_to(ranks: list[int], samples: list[int], kept: list[float]) -> None:
    shares = tuple(Share(site=str(i), samples=n, rank=r) for i, (r, n) in enumerate(zip(ranks, samples, strict=True)))

    assert list(exact.kept_shares(Outline("w", 10, 10, shares, global_rank=5))) == kept
