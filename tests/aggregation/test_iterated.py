"""Subspace iteration on the stacked factors: as exact as the dense truth, whatever the spectrum, and in bounded memory."""

import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_operator.aggregation import factorise, iterated
from fedpipe_operator.aggregation.stack import Lazy, Piece, Size
from fedpipe_operator.aggregation.values import Factors

RANK, WIDE, SITES = 8, 12, 16
D_OUT, D_IN = 300, 260
FEW_BYTES = 4 * (D_OUT + D_IN) * 50
"""Room for 50 of the 192 components."""

Fleet = list[tuple[np.ndarray, np.ndarray]]


def drawn(seed: int, decay: Callable[[np.ndarray], np.ndarray], apart: float | None = None, *, opposed: bool = False) -> Fleet:
    """Factors of sites; components of one site fall by `decay`, sites share a direction and differ from it by `apart` (None: wholly)."""
    rng = np.random.default_rng(seed)
    sizes = decay(np.arange(WIDE))
    common = rng.standard_normal((D_OUT, WIDE)) * sizes, rng.standard_normal((WIDE, D_IN))
    found = []
    for site in range(SITES):
        b, a = rng.standard_normal((D_OUT, WIDE)) * sizes, rng.standard_normal((WIDE, D_IN))
        if apart is not None:
            sign = -1 if opposed and site % 2 else 1
            b, a = sign * common[0] + apart * b, common[1] + apart * a
        found.append((b.astype(np.float32), a.astype(np.float32)))
    return found


def pieces(fleet: Fleet) -> list[Lazy]:
    return [Lazy(WIDE, partial(Piece, np.full(WIDE, 1 / len(fleet)), Factors(b=b, a=a))) for b, a in fleet]


def size_of(fleet: Fleet, rank: int = RANK) -> Size:
    return Size(d_out=D_OUT, d_in=D_IN, components=WIDE * len(fleet), rank=rank)


def dense(fleet: Fleet) -> np.ndarray:
    return sum(b.astype(np.float64) @ a.astype(np.float64) for b, a in fleet) / len(fleet)


def assert_the_best_cut(fleet: Fleet, found: factorise.Factorised) -> None:
    truth = dense(fleet)
    energies = np.linalg.svd(truth, compute_uv=False) ** 2
    lost = energies[RANK:].sum() / energies.sum()
    assert np.linalg.norm(truth - found.b.astype(np.float64) @ found.a) / np.linalg.norm(truth) == pytest.approx(lost**0.5, abs=1e-6)
    assert found.truncated_energy == pytest.approx(lost, abs=1e-6)


def few_bytes(monkeypatch: pytest.MonkeyPatch, grams: int) -> None:
    """Room for a part of the components, with Gram matrices of so many bytes beside it or, with 0, without."""
    monkeypatch.setattr(iterated, "HELD_BYTES", FEW_BYTES + grams)
    monkeypatch.setattr(iterated, "_NARROW_BYTES", FEW_BYTES // 4)
    monkeypatch.setattr(iterated, "_GRAM_BYTES", grams)


SPECTRA = {
    "flat": lambda i: i**0.0,
    "slow decay": lambda i: 1 / (1 + i),
    "fast decay": lambda i: np.exp(-i),
    "a cliff": lambda i: np.where(i < RANK, 1.0, 1e-5),
    "steep, then flat": lambda i: np.maximum(np.exp(-2.0 * i), 1e-4),
}
APART = [None, 1.0, 0.1, 1e-3, 1e-6]
"""How far sites are from one common update: from wholly independent ones to nearly equal ones."""


@pytest.mark.parametrize("held", ["everything", "Gram matrices", "two groups"])
@pytest.mark.parametrize("apart", APART)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_cut_is_the_best_one_whatever_the_spectrum(
    monkeypatch: pytest.MonkeyPatch, spectrum: str, apart: float | None, held: str
) -> None:
    if held != "everything":
        few_bytes(monkeypatch, grams=0 if held == "two groups" else 4 * (WIDE * SITES) ** 2)
    fleet = drawn(0, SPECTRA[spectrum], apart)
    assert factorise.cheapest(size_of(fleet)) == "Iterated"

    assert_the_best_cut(fleet, factorise.factorise(pieces(fleet), size_of(fleet)))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0, 3),
    st.one_of(st.none(), st.floats(-8, 1).map(lambda power: 10**power)),
    st.booleans(),
)
def test_the_cut_is_the_best_one_for_any_decay_and_likeness(seed: int, decay: float, apart: float | None, opposed: bool) -> None:
    fleet = drawn(seed, lambda i: np.exp(-decay * i), apart, opposed=opposed)

    assert_the_best_cut(fleet, factorise.factorise(pieces(fleet), size_of(fleet)))


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12, 1e25])
def test_factors_beyond_the_range_of_float32_squares_lose_no_accuracy(size: float) -> None:
    fleet = drawn(0, SPECTRA["slow decay"], 1.0)
    uneven = [(b * np.float32(size), a / np.float32(size)) if site % 2 else (b, a) for site, (b, a) in enumerate(fleet)]

    assert_the_best_cut(uneven, factorise.factorise(pieces(uneven), size_of(uneven)))


@pytest.mark.parametrize("alive", [0, 1, 3])
def test_sites_that_changed_nothing_are_no_trouble(alive: int) -> None:
    fleet = [(b * np.float32(site < alive), a) for site, (b, a) in enumerate(drawn(0, SPECTRA["slow decay"]))]

    found = factorise.factorise(pieces(fleet), size_of(fleet))

    if alive:
        assert_the_best_cut(fleet, found)
    else:
        assert not found.b.any()
        assert found.truncated_energy == 0


def test_float32_is_not_trusted_where_little_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    original = iterated._from_grams
    monkeypatch.setattr(iterated, "_from_grams", lambda groups, dtype: (tried.append(dtype.name), original(groups, dtype))[1])

    for apart in (1.0, 1e-5):
        fleet = drawn(0, lambda i: np.where(i < RANK, np.exp(-i / 4), 1e-6), apart)
        assert_the_best_cut(fleet, factorise.factorise(pieces(fleet), size_of(fleet)))

    assert tried == ["float32", "float32", "float64"]


def test_the_result_does_not_depend_on_how_much_is_held_beyond_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = drawn(1, SPECTRA["slow decay"], 1.0)
    whole = factorise.factorise(pieces(fleet), size_of(fleet))
    few_bytes(monkeypatch, grams=0)

    parts = factorise.factorise(pieces(fleet), size_of(fleet))

    np.testing.assert_allclose(parts.b @ parts.a, whole.b @ whole.a, atol=1e-4 * np.abs(whole.b @ whole.a).max())
    assert parts.truncated_energy == pytest.approx(whole.truncated_energy, abs=1e-6)


@pytest.mark.parametrize("grams", [0, 4 * (WIDE * 40) ** 2])
def test_memory_does_not_grow_with_the_number_of_sites(monkeypatch: pytest.MonkeyPatch, grams: int) -> None:
    few_bytes(monkeypatch, grams=grams)

    def read(number: int) -> Piece:
        rng = np.random.default_rng(number)
        b, a = rng.standard_normal((D_OUT, WIDE), np.float32), rng.standard_normal((WIDE, D_IN), np.float32)
        return Piece(np.ones(WIDE), Factors(b=b, a=a))

    def peak(sites: int) -> int:
        tracemalloc.start()
        try:
            found = iterated.space([Lazy(WIDE, partial(read, number)) for number in range(sites)], Size(D_OUT, D_IN, WIDE * sites, RANK))
            return tracemalloc.get_traced_memory()[1]
        finally:
            assert found is not None
            tracemalloc.stop()

    assert peak(40) < 1.3 * peak(20) + grams
