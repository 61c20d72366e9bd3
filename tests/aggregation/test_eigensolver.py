"""Chebyshev-filtered subspace iteration: its accuracy, its error bound, and the cases that it does not solve."""

import numpy as np
import pytest

from fedpipe_operator.aggregation import eigensolver

SIZE, RANK = 480, 10
FLAT, DECAYING = 0.0, 0.7


def factors(decay: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = np.exp(-decay * (np.arange(SIZE) % 12))
    return rng.standard_normal((600, SIZE)) * sizes, rng.standard_normal((SIZE, 500))


def coefficient_operator(left: np.ndarray, right: np.ndarray, dtype: type = np.float64) -> eigensolver.Operator:
    left_gram, right_gram = (left.T @ left).astype(dtype), (right @ right.T).astype(dtype)
    return eigensolver.Operator(SIZE, np.dtype(dtype), lambda z: right_gram @ z, lambda y: left_gram @ y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decay", [FLAT, DECAYING])
def test_the_vectors_span_the_dominant_subspace(decay: float, dtype: type) -> None:
    left, right = factors(decay)
    energies = np.linalg.svd(left @ right, compute_uv=False) ** 2

    pairs = eigensolver.dominant_eigenpairs(coefficient_operator(left, right, dtype), RANK, energies.sum())

    assert pairs is not None
    basis = np.linalg.qr(right.T @ pairs.vectors).Q
    captured = np.linalg.norm(left @ right @ basis) ** 2
    assert energies[:RANK].sum() - captured <= eigensolver.tolerated_error(energies[RANK:].sum(), energies.sum())
    np.testing.assert_allclose(pairs.values, energies[:RANK], rtol=1e-4)


@pytest.mark.parametrize("independent", [3, RANK])
def test_too_few_independent_directions_give_no_result(independent: int) -> None:
    left, right = factors(FLAT)
    left, right = np.tile(left[:, :independent], SIZE // independent), np.tile(right[:independent], (SIZE // independent, 1))

    assert eigensolver.dominant_eigenpairs(coefficient_operator(left, right), RANK, np.linalg.norm(left @ right) ** 2) is None


def test_an_operator_with_the_euclidean_inner_product_is_solved() -> None:
    left, _ = factors(DECAYING)
    gram = left.T @ left
    operator = eigensolver.Operator(SIZE, np.dtype(np.float64), lambda z: z, lambda z: gram @ z)

    pairs = eigensolver.dominant_eigenpairs(operator, RANK, float(np.trace(gram)))

    assert pairs is not None
    np.testing.assert_allclose(pairs.vectors.T @ pairs.vectors, np.eye(RANK), atol=1e-8)
    assert np.trace(pairs.vectors.T @ gram @ pairs.vectors) > (1 - 1e-6) * np.linalg.eigvalsh(gram)[-RANK:].sum()


def test_a_steep_spectrum_followed_by_a_flat_one_is_solved_despite_amplified_rounding_errors() -> None:
    values = np.concatenate([10.0 ** -np.arange(8), 1e-8 * np.linspace(1, 0.5, SIZE - 8)])
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE))).Q
    matrix = axes * values @ axes.T
    operator = eigensolver.Operator(SIZE, np.dtype(np.float64), lambda z: z, lambda z: matrix @ z)

    pairs = eigensolver.dominant_eigenpairs(operator, RANK, values.sum())

    assert pairs is not None
    assert values[:RANK].sum() - pairs.values.sum() <= eigensolver.tolerated_error(values[RANK:].sum(), values.sum())


@pytest.mark.parametrize(("truncated", "growth"), [(0.5, 1e-7), (1e-8, 1e-7), (0.0, 1e-7), (-1e-12, 1e-7)])
def test_the_tolerated_error_increases_the_truncation_error_by_at_most_1e_7(truncated: float, growth: float) -> None:
    error = eigensolver.tolerated_error(4 * truncated, 4.0)

    assert np.sqrt(max(truncated, 0) + error / 4) - np.sqrt(max(truncated, 0)) == pytest.approx(growth, rel=1e-3)


def test_the_error_bound_depends_on_the_gap_to_the_next_eigenvalue() -> None:
    values, residuals = np.array([4.0, 2.0]), np.array([0.1, 0.01])

    assert eigensolver.error_bound(values, residuals, next_eigenvalue=1.0) == pytest.approx(0.01 / 1.5 + 0.0001 / 0.5)
    assert eigensolver.error_bound(values, residuals, next_eigenvalue=4.0) == pytest.approx(0.11)
