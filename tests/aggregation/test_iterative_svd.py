"""Subspace iteration on the stacked factors: as accurate as the dense SVD for every spectrum, and in bounded memory."""

import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_operator.aggregation import iterative_svd
from fedpipe_operator.aggregation.factors import Factors
from fedpipe_operator.aggregation.stacked_factors import LazyFactors, StackShape, WeightedFactors
from fedpipe_operator.aggregation.truncated_svd import TruncatedSVD, fastest_algorithm, truncated_svd

RANK, SITE_RANK, SITES = 8, 12, 16
D_OUT, D_IN = 300, 260
SMALL_BUDGET = 4 * (D_OUT + D_IN) * 50
"""Bytes of 50 of the 192 components."""

Fleet = list[tuple[np.ndarray, np.ndarray]]


def random_fleet(seed: int, decay: Callable[[np.ndarray], np.ndarray], deviation: float | None = None, *, opposed: bool = False) -> Fleet:
    """Factors of sites. A site's components decrease by `decay`; sites deviate from a common update by `deviation` (None: independent)."""
    rng = np.random.default_rng(seed)
    sizes = decay(np.arange(SITE_RANK))
    common = rng.standard_normal((D_OUT, SITE_RANK)) * sizes, rng.standard_normal((SITE_RANK, D_IN))
    fleet = []
    for site in range(SITES):
        b, a = rng.standard_normal((D_OUT, SITE_RANK)) * sizes, rng.standard_normal((SITE_RANK, D_IN))
        if deviation is not None:
            sign = -1 if opposed and site % 2 else 1
            b, a = sign * common[0] + deviation * b, common[1] + deviation * a
        fleet.append((b.astype(np.float32), a.astype(np.float32)))
    return fleet


def summands(fleet: Fleet) -> list[LazyFactors]:
    return [LazyFactors(SITE_RANK, partial(WeightedFactors, np.full(SITE_RANK, 1 / len(fleet)), Factors(b=b, a=a))) for b, a in fleet]


def shape_of(fleet: Fleet, rank: int = RANK) -> StackShape:
    return StackShape(d_out=D_OUT, d_in=D_IN, components=SITE_RANK * len(fleet), rank=rank)


def dense(fleet: Fleet) -> np.ndarray:
    return sum(b.astype(np.float64) @ a.astype(np.float64) for b, a in fleet) / len(fleet)


def assert_best_truncation(fleet: Fleet, result: TruncatedSVD) -> None:
    expected = dense(fleet)
    energies = np.linalg.svd(expected, compute_uv=False) ** 2
    lost = energies[RANK:].sum() / energies.sum()
    assert np.linalg.norm(expected - result.b.astype(np.float64) @ result.a) / np.linalg.norm(expected) == pytest.approx(
        lost**0.5, abs=1e-6
    )
    assert result.truncated_energy == pytest.approx(lost, abs=1e-6)


def shrink_budget(monkeypatch: pytest.MonkeyPatch, gram_bytes: int) -> None:
    """Make the budget too small for all components; Gram matrices of `gram_bytes` fit beside a batch, none do with 0."""
    monkeypatch.setattr(iterative_svd, "MEMORY_BUDGET", SMALL_BUDGET + gram_bytes)
    monkeypatch.setattr(iterative_svd, "_SMALL_BATCH", SMALL_BUDGET // 4)
    monkeypatch.setattr(iterative_svd, "_GRAM_BUDGET", gram_bytes)


SPECTRA = {
    "flat": lambda i: i**0.0,
    "slow decay": lambda i: 1 / (1 + i),
    "fast decay": lambda i: np.exp(-i),
    "a cliff": lambda i: np.where(i < RANK, 1.0, 1e-5),
    "steep, then flat": lambda i: np.maximum(np.exp(-2.0 * i), 1e-4),
}
DEVIATIONS = [None, 1.0, 0.1, 1e-3, 1e-6]
"""How far the sites are from a common update: from independent to nearly equal updates."""


@pytest.mark.parametrize("in_memory", ["everything", "Gram matrices", "two batches"])
@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_truncation_is_the_best_one_for_every_spectrum(
    monkeypatch: pytest.MonkeyPatch, spectrum: str, deviation: float | None, in_memory: str
) -> None:
    if in_memory != "everything":
        shrink_budget(monkeypatch, gram_bytes=0 if in_memory == "two batches" else 4 * (SITE_RANK * SITES) ** 2)
    fleet = random_fleet(0, SPECTRA[spectrum], deviation)
    assert fastest_algorithm(shape_of(fleet)) == "Iterative"

    assert_best_truncation(fleet, truncated_svd(summands(fleet), shape_of(fleet)))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 3),
    st.one_of(st.none(), st.floats(-8, 1).map(lambda power: 10**power)),
    st.booleans(),
)
def test_the_truncation_is_the_best_one_for_any_decay_and_deviation(
    seed: int, decay: float, deviation: float | None, opposed: bool
) -> None:
    fleet = random_fleet(seed, lambda i: np.exp(-decay * i), deviation, opposed=opposed)

    assert_best_truncation(fleet, truncated_svd(summands(fleet), shape_of(fleet)))


@pytest.mark.parametrize(("seed", "decay", "deviation"), [(0, 2.0, 1e-4), (9, 1.4069104813522992, 1.1200911395398857e-05)])
def test_a_subspace_that_lacks_one_of_the_dominant_directions_is_not_accepted(seed: int, decay: float, deviation: float) -> None:
    """Where the spectrum is steep, the iteration may find rounding errors in the place of a weak direction, each with a small residual."""
    fleet = random_fleet(seed, lambda i: np.exp(-decay * i), deviation)

    assert_best_truncation(fleet, truncated_svd(summands(fleet), shape_of(fleet)))


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12, 1e25])
def test_factors_beyond_the_range_of_float32_squares_lose_no_accuracy(size: float) -> None:
    fleet = random_fleet(0, SPECTRA["slow decay"], 1.0)
    uneven = [(b * np.float32(size), a / np.float32(size)) if site % 2 else (b, a) for site, (b, a) in enumerate(fleet)]

    assert_best_truncation(uneven, truncated_svd(summands(uneven), shape_of(uneven)))


@pytest.mark.parametrize("nonzero", [0, 1, 3])
def test_sites_with_a_zero_update_are_supported(nonzero: int) -> None:
    fleet = [(b * np.float32(site < nonzero), a) for site, (b, a) in enumerate(random_fleet(0, SPECTRA["slow decay"]))]

    result = truncated_svd(summands(fleet), shape_of(fleet))

    if nonzero:
        assert_best_truncation(fleet, result)
    else:
        assert not result.b.any()
        assert result.truncated_energy == 0


def test_float64_is_used_where_little_energy_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    precisions = []
    original = iterative_svd._iterate_on_grams
    monkeypatch.setattr(
        iterative_svd, "_iterate_on_grams", lambda batches, dtype: (precisions.append(dtype.name), original(batches, dtype))[1]
    )

    for deviation in (1.0, 1e-5):
        fleet = random_fleet(0, lambda i: np.where(i < RANK, np.exp(-i / 4), 1e-6), deviation)
        assert_best_truncation(fleet, truncated_svd(summands(fleet), shape_of(fleet)))

    assert precisions == ["float32", "float32", "float64"]


def test_the_result_does_not_depend_on_the_memory_budget_beyond_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = random_fleet(1, SPECTRA["slow decay"], 1.0)
    reference = truncated_svd(summands(fleet), shape_of(fleet))
    shrink_budget(monkeypatch, gram_bytes=0)

    batched = truncated_svd(summands(fleet), shape_of(fleet))

    np.testing.assert_allclose(batched.b @ batched.a, reference.b @ reference.a, atol=1e-4 * np.abs(reference.b @ reference.a).max())
    assert batched.truncated_energy == pytest.approx(reference.truncated_energy, abs=1e-6)


@pytest.mark.parametrize("gram_bytes", [0, 4 * (SITE_RANK * 40) ** 2])
def test_memory_does_not_grow_with_the_number_of_sites(monkeypatch: pytest.MonkeyPatch, gram_bytes: int) -> None:
    shrink_budget(monkeypatch, gram_bytes=gram_bytes)

    def read(number: int) -> WeightedFactors:
        rng = np.random.default_rng(number)
        b, a = rng.standard_normal((D_OUT, SITE_RANK), np.float32), rng.standard_normal((SITE_RANK, D_IN), np.float32)
        return WeightedFactors(np.ones(SITE_RANK), Factors(b=b, a=a))

    def peak(sites: int) -> int:
        tracemalloc.start()
        try:
            subspace = iterative_svd.dominant_subspace(
                [LazyFactors(SITE_RANK, partial(read, number)) for number in range(sites)], StackShape(D_OUT, D_IN, SITE_RANK * sites, RANK)
            )
            return tracemalloc.get_traced_memory()[1]
        finally:
            assert subspace is not None
            tracemalloc.stop()

    assert peak(40) < 1.3 * peak(20) + gram_bytes
