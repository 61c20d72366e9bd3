"""Subspace iteration on Gram matrices: when its answer may be taken, and when it steps aside."""

import numpy as np
import pytest

from fedpipe_operator.aggregation import subspace

SIZE, RANK = 480, 10
FLAT, DECAYING = 0.0, 0.7


def stack(decay: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = np.exp(-decay * (np.arange(SIZE) % 12))
    return rng.standard_normal((600, SIZE)) * sizes, rng.standard_normal((SIZE, 500))


def on_coefficients(left: np.ndarray, right: np.ndarray, dtype: type = np.float64) -> subspace.Operator:
    left_gram, right_gram = (left.T @ left).astype(dtype), (right @ right.T).astype(dtype)
    return subspace.Operator(SIZE, np.dtype(dtype), lambda z: right_gram @ z, lambda y: left_gram @ y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decay", [FLAT, DECAYING])
def test_the_vectors_found_span_the_dominant_space(decay: float, dtype: type) -> None:
    left, right = stack(decay)
    energies = np.linalg.svd(left @ right, compute_uv=False) ** 2

    found = subspace.dominant(on_coefficients(left, right, dtype), RANK, energies.sum())

    assert found is not None
    basis = np.linalg.qr(right.T @ found.vectors).Q
    caught = np.linalg.norm(left @ right @ basis) ** 2
    assert energies[:RANK].sum() - caught <= subspace.bearable(energies[RANK:].sum(), energies.sum())
    np.testing.assert_allclose(found.values, energies[:RANK], rtol=1e-4)


@pytest.mark.parametrize("rank_of_all", [3, RANK])
def test_more_directions_than_there_are_is_not_answered(rank_of_all: int) -> None:
    left, right = stack(FLAT)
    left, right = np.tile(left[:, :rank_of_all], SIZE // rank_of_all), np.tile(right[:rank_of_all], (SIZE // rank_of_all, 1))

    assert subspace.dominant(on_coefficients(left, right), RANK, np.linalg.norm(left @ right) ** 2) is None


def test_an_operator_on_vectors_needs_no_inner_product_of_its_own() -> None:
    left, _ = stack(DECAYING)
    gram = left.T @ left
    operator = subspace.Operator(SIZE, np.dtype(np.float64), lambda z: z, lambda z: gram @ z)

    found = subspace.dominant(operator, RANK, float(np.trace(gram)))

    assert found is not None
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(RANK), atol=1e-8)
    assert np.trace(found.vectors.T @ gram @ found.vectors) > (1 - 1e-6) * np.linalg.eigvalsh(gram)[-RANK:].sum()


def test_a_steep_spectrum_before_a_flat_one_is_found_though_the_first_would_drown_the_rest() -> None:
    values = np.concatenate([10.0 ** -np.arange(8), 1e-8 * np.linspace(1, 0.5, SIZE - 8)])
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE))).Q
    matrix = axes * values @ axes.T
    operator = subspace.Operator(SIZE, np.dtype(np.float64), lambda z: z, lambda z: matrix @ z)

    found = subspace.dominant(operator, RANK, values.sum())

    assert found is not None
    assert values[:RANK].sum() - found.values.sum() <= subspace.bearable(values[RANK:].sum(), values.sum())


@pytest.mark.parametrize(("lost", "growth"), [(0.5, 1e-7), (1e-8, 1e-7), (0.0, 1e-7), (-1e-12, 1e-7)])
def test_what_may_be_missed_makes_the_cut_no_more_than_a_ten_millionth_worse(lost: float, growth: float) -> None:
    more = subspace.bearable(4 * lost, 4.0)

    assert np.sqrt(max(lost, 0) + more / 4) - np.sqrt(max(lost, 0)) == pytest.approx(growth, rel=1e-3)


def test_what_lies_outside_bounds_what_is_missed() -> None:
    values, residuals = np.array([4.0, 2.0]), np.array([0.1, 0.01])

    assert subspace.missed(values, residuals, floor=1.0) == pytest.approx(0.01 / 1.5 + 0.0001 / 0.5)
    assert subspace.missed(values, residuals, floor=4.0) == pytest.approx(0.11)
