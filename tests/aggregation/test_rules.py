"""Krum, MultiKrum, Median and TrimmedMean of one weight with heterogeneous ranks, compared with numpy on the dense increments."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_factors import product, random_sites, readers_of, updates_of

from fedpipe_operator.aggregation import CannotAggregateError, coordinates, dense_svd, distances, exact
from fedpipe_operator.aggregation.coordinates import median, trimmed_mean
from fedpipe_operator.aggregation.factors import Factors, SiteFactors, WeightUpdates
from fedpipe_operator.aggregation.krum import closest
from fedpipe_operator.aggregation.rules import require_enough_updates

deterministic = settings(derandomize=True, deadline=None, max_examples=60)
RANKS = st.lists(st.integers(1, 6), min_size=1, max_size=7)
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
SEEDS = st.integers(0, 2**32 - 1)
REDUCED = {
    "Median": (median, lambda values: np.median(values, axis=0)),
    "TrimmedMean": (lambda values: trimmed_mean(values, 1), lambda values: np.sort(values, axis=0)[1:-1].mean(axis=0)),
}


def increments(sites: Sequence[SiteFactors], updates: WeightUpdates, previous: Factors | None) -> np.ndarray:
    """pace_k D_k, dense."""
    found = []
    for one, site in zip(updates.sites, sites, strict=True):
        start = 0 if previous is None else product(Factors(b=previous.b[:, : one.rank], a=previous.a[: one.rank]))
        found.append(one.pace * one.clip * (site.scale * product(site.factors) - start))
    return np.stack(found)


def a_round(
    seed: int, shape: tuple[int, int], ranks: list[int], global_rank: int
) -> tuple[list[SiteFactors], WeightUpdates, Factors | None]:
    rng = np.random.default_rng(seed)
    sites = random_sites(rng, shape, ranks)
    b, a = rng.standard_normal((shape[0], global_rank), np.float32), rng.standard_normal((global_rank, shape[1]), np.float32)
    previous = Factors(b=b, a=a) if global_rank else None
    updates = updates_of(sites, previous)
    paces, clips = rng.uniform(0.1, 10, len(ranks)), rng.uniform(0.1, 1, len(ranks))
    sited = zip(updates.sites, paces, clips, strict=True)
    return sites, replace(updates, sites=tuple(replace(one, pace=float(pace), clip=float(clip)) for one, pace, clip in sited)), previous


@deterministic
@given(SEEDS, SHAPES, RANKS, st.integers(0, 6), st.sampled_from(sorted(REDUCED)))
def test_a_coordinate_rule_without_truncation_equals_the_dense_one(
    seed: int, shape: tuple[int, int], ranks: list[int], global_rank: int, rule: str
) -> None:
    ranks = ranks if rule == "Median" else [*ranks, 2, 3]
    sites, updates, previous = a_round(seed, shape, ranks, global_rank)
    reduce, dense_reduce = REDUCED[rule]

    result = coordinates.aggregate(updates, readers_of(sites), previous, min(shape), reduce)

    dense = dense_reduce(increments(sites, updates, previous)) + (0 if previous is None else product(previous))
    np.testing.assert_allclose(product(result.factors), dense, atol=2e-6 * max(1.0, float(np.linalg.norm(dense))))
    assert result.truncated_energy == 0


@deterministic
@given(SEEDS, SHAPES, RANKS, st.integers(1, 5))
def test_the_truncation_of_a_coordinate_rule_is_the_best_of_its_rank_and_reported(
    seed: int, shape: tuple[int, int], ranks: list[int], rank: int
) -> None:
    sites, updates, previous = a_round(seed, shape, ranks, 2)
    rank = min(rank, *shape)
    dense = np.median(increments(sites, updates, previous), axis=0) + product(previous)
    energies = np.linalg.svd(dense, compute_uv=False) ** 2

    result = coordinates.aggregate(updates, readers_of(sites), previous, rank, median)

    lost = energies[rank:].sum() / energies.sum()
    assert result.truncated_energy == pytest.approx(lost, abs=1e-6)
    assert np.linalg.norm(product(result.factors) - dense) == pytest.approx(
        (lost * energies.sum()) ** 0.5, abs=1e-5 * energies.sum() ** 0.5
    )


@pytest.mark.parametrize("shape", [(300, 200), (150, 400)])
def test_a_large_matrix_is_reduced_by_iteration_as_by_a_full_decomposition(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    spectrum = 1 / np.arange(1, 101)
    u, v = (np.linalg.qr(rng.standard_normal((size, 100))).Q for size in shape)
    dense = ((u * spectrum) @ v.T).astype(np.float32)

    b, a, truncated_energy = dense_svd.truncated_svd_of(dense, 8)

    assert truncated_energy == pytest.approx((spectrum[8:] ** 2).sum() / (spectrum**2).sum(), abs=1e-6)
    np.testing.assert_allclose(b.astype(np.float64) @ a, (u[:, :8] * spectrum[:8]) @ v[:, :8].T, atol=1e-5)


def test_the_matrix_of_zeros_is_reduced_to_zeros() -> None:
    b, a, truncated_energy = dense_svd.truncated_svd_of(np.zeros((80, 90), np.float32), 4)

    assert not (b @ a).any()
    assert truncated_energy == 0


def test_a_tensor_that_is_trained_as_a_whole_is_combined_by_its_coordinates() -> None:
    start, tensors = np.float32([1, 2]), [np.float32([2, 2]), np.float32([5, 1]), np.float32([-9, 8])]

    np.testing.assert_array_equal(coordinates.combine(tensors, [1, 1, 1], start, median), np.float32([2, 2]))
    np.testing.assert_array_equal(coordinates.combine(tensors, [2, 1, 1], start, median), np.float32([3, 2]))
    np.testing.assert_array_equal(coordinates.combine(tensors, [9, 9, 9], None, median), np.float32([2, 2]))


def test_of_too_few_values_the_trimmed_mean_leaves_the_one_or_two_in_the_middle() -> None:
    values = np.float32([[1], [2], [9]])

    assert trimmed_mean(values, 2) == 2
    assert trimmed_mean(values[:2], 2) == 1.5
    assert trimmed_mean(values[:1], 2) == 1


def test_memory_of_a_coordinate_rule_does_not_grow_with_the_number_of_sites_beyond_their_factors() -> None:
    def peak(count: int) -> int:
        sites, updates, _ = a_round(0, (700, 700), [2] * count, 0)
        tracemalloc.start()
        coordinates.aggregate(updates, readers_of(sites), None, 4, median)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    assert peak(40) < 1.2 * peak(10)


@deterministic
@given(SEEDS, SHAPES, RANKS, st.integers(0, 6), st.sampled_from([1e9, 2e3]))
def test_distances_equal_those_of_the_dense_increments(
    seed: int, shape: tuple[int, int], ranks: list[int], global_rank: int, budget: float
) -> None:
    sites, updates, previous = a_round(seed, shape, ranks, global_rank)
    updates = replace(updates, sites=tuple(replace(one, clip=1.0) for one in updates.sites))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "MEMORY_BUDGET", budget)  # the smaller one makes several batches
        found = distances.of_products(updates, readers_of(sites), previous)

    dense = np.stack([*increments(sites, updates, previous), np.zeros(shape)])
    expected = ((dense[:, None] - dense[None]) ** 2).sum(axis=(2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * expected.max())


@deterministic
@given(SEEDS, SHAPES)
def test_no_site_seems_closer_than_it_is_because_its_components_cancel(seed: int, shape: tuple[int, int]) -> None:
    sites, updates, _ = a_round(seed, shape, [2, 2, 2], 0)
    rng = np.random.default_rng(seed)
    b, a = rng.standard_normal((shape[0], 1), np.float32), np.float32(1e28) * rng.standard_normal((1, shape[1]), np.float32)
    other = np.nextafter(a, np.float32(np.inf))
    sites[0] = replace(sites[0], factors=Factors(b=np.hstack([b, -b]), a=np.vstack([a, other])))

    found = distances.of_products(updates, readers_of(sites), None)

    length = sites[0].scale * updates.sites[0].pace * np.linalg.norm(b.astype(np.float64) @ (a.astype(np.float64) - other))
    assert found[0, -1] >= length**2


@deterministic
@given(SEEDS, st.integers(1, 3), st.integers(0, 4), st.booleans())
def test_krum_selects_the_sites_of_the_lowest_scores(seed: int, malicious: int, more: int, multi: bool) -> None:
    n = 2 * malicious + 3 + more
    points = np.random.default_rng(seed).standard_normal((n, 5))
    squares = ((points[:, None] - points) ** 2).sum(axis=2)
    keep = n - malicious - 2 if multi else 1
    scores = [sum(sorted(squares[i, j] for j in range(n) if j != i)[: n - malicious - 2]) for i in range(n)]

    assert closest(squares, malicious, keep) == sorted(sorted(range(n), key=lambda i: scores[i])[:keep])


def test_krum_leaves_out_the_malicious_ones_that_are_far_away_or_together() -> None:
    points = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 50.0, 50.0])

    assert closest((points[:, None] - points) ** 2, malicious=2, keep=3) == [1, 2, 3]


@pytest.mark.parametrize(("rule", "needed"), [("Krum", 7), ("MultiKrum", 7), ("TrimmedMean", 5), ("Median", 1), ("Mean", 1)])
def test_too_few_updates_for_a_rule_are_refused_in_a_sentence(rule: str, needed: int) -> None:
    require_enough_updates(rule, needed, 2)
    if needed > 1:
        with pytest.raises(
            CannotAggregateError, match=rf"{rule} with maliciousSites 2 needs {needed} updates, and {needed - 1} were accepted: "
        ):
            require_enough_updates(rule, needed - 1, 2)


def test_a_clipped_increment_counts_as_its_shortened_self_in_the_exact_mean() -> None:
    sites, updates, previous = a_round(5, (9, 8), [2, 4, 3], 5)
    readers = readers_of([replace(site, share=one.coefficient) for site, one in zip(sites, updates.sites, strict=True)])
    updates = replace(updates, server_rate=1.3, sites=tuple(replace(one, pace=1.0) for one in updates.sites))

    result = exact.aggregate(updates, readers, previous, exact.rank(updates, 64))

    shares = np.array([one.share for one in updates.sites])
    dense = product(previous) + 1.3 * np.tensordot(shares, increments(sites, updates, previous), 1)
    np.testing.assert_allclose(product(result.factors), dense, atol=1e-5)
