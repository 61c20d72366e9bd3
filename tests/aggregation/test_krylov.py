"""Block Lanczos on Gram matrices, and when it steps aside."""

import numpy as np
import pytest

from fedpipe_operator.aggregation import factorise, krylov
from fedpipe_operator.aggregation.stack import Piece
from fedpipe_operator.aggregation.values import Factors

FLAT, DECAYING = 0.0, 0.7


def space_of(left: np.ndarray, right: np.ndarray, rank: int) -> factorise.Space:
    """The way called Krylov on factors as they lie in files."""
    factors = Factors(b=left.astype(np.float32), a=right.astype(np.float32))
    size = factorise.Size(d_out=len(left), d_in=right.shape[1], components=len(right), rank=rank)
    return factorise.WAYS["Krylov"].space([Piece(np.ones(len(right)), factors)], size)


def stack(decay: float, count: int = 480) -> tuple[np.ndarray, np.ndarray]:
    """Random factors whose values float32 holds exactly."""
    rng = np.random.default_rng(0)
    sizes = np.exp(-decay * (np.arange(count) % 12))
    left, right = rng.standard_normal((600, count)) * sizes, rng.standard_normal((count, 500))
    return left.astype(np.float32).astype(np.float64), right.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("decay", [FLAT, DECAYING])
def test_the_residual_check_passes_only_on_the_dominant_space(decay: float) -> None:
    left, right = stack(decay)
    energies = np.linalg.svd(left @ right, compute_uv=False) ** 2

    found = krylov.dominant_coefficients(left.T @ left, right @ right.T, 10)

    assert found is not None
    basis = np.linalg.qr(right.T @ found).Q
    assert np.linalg.norm(left @ right @ basis) ** 2 > (1 - 1e-6) * energies[:10].sum()


@pytest.mark.parametrize("rank_of_all", [3, 40])
def test_a_space_that_is_exhausted_is_left_to_a_direct_way(rank_of_all: int) -> None:
    left, right = stack(FLAT)
    left, right = np.tile(left[:, :rank_of_all], 12), np.tile(right[:rank_of_all], (12, 1))
    energies = np.linalg.svd(left @ right, compute_uv=False) ** 2

    basis, image, energy = space_of(left, right, 10)

    assert krylov.dominant_coefficients(left.T @ left, right @ right.T, 10) is None
    np.testing.assert_allclose(np.linalg.norm(image) ** 2, energies[:10].sum(), rtol=1e-10)
    np.testing.assert_allclose(image, left @ right @ basis.T, atol=1e-8)
    np.testing.assert_allclose(energy, energies.sum(), rtol=1e-10)


@pytest.mark.parametrize("tail", [1e-9, 1e-6, 1e-4, 1e-2])
def test_a_cut_that_loses_almost_nothing_is_as_good_as_the_best(tail: float) -> None:
    left, right = stack(FLAT)
    left[:, :10] *= 10.0 ** -np.arange(0, 5, 0.5)
    left[:, 10:] *= tail
    left = left.astype(np.float32).astype(np.float64)
    dense = left @ right
    lost = np.linalg.norm(np.linalg.svd(dense, compute_uv=False)[10:])

    basis = space_of(left, right, 10).basis

    assert np.linalg.norm(dense - dense @ basis.T @ basis) < lost + 1e-6 * np.linalg.norm(dense)


def test_orthonormal_rows_need_no_gram_matrix_of_their_own() -> None:
    left, _ = stack(DECAYING)
    gram = left.T @ left

    found = krylov.dominant_coefficients(gram, None, 10)

    assert found is not None
    np.testing.assert_allclose(found.T @ found, np.eye(10), atol=1e-8)
    assert np.trace(found.T @ gram @ found) > (1 - 1e-6) * np.linalg.eigvalsh(gram)[-10:].sum()
