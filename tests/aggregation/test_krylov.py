"""Block Lanczos on Gram matrices, and when it steps aside."""

import numpy as np
import pytest

from fedpipe_operator.aggregation import factorise, krylov

FLAT, DECAYING = 0.0, 0.7


def stack(decay: float, count: int = 480) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = np.exp(-decay * (np.arange(count) % 12))
    return rng.standard_normal((600, count)) * sizes, rng.standard_normal((count, 500))


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

    basis, energy = factorise.WAYS["Krylov"].space(left, right, 10)

    assert krylov.dominant_coefficients(left.T @ left, right @ right.T, 10) is None
    np.testing.assert_allclose(np.linalg.norm(left @ right @ basis.T) ** 2, energies[:10].sum(), rtol=1e-10)
    np.testing.assert_allclose(energy, energies.sum(), rtol=1e-10)


@pytest.mark.parametrize("tail", [1e-9, 1e-6, 1e-4, 1e-2])
def test_a_cut_that_loses_almost_nothing_is_as_good_as_the_best(tail: float) -> None:
    left, right = stack(FLAT)
    left[:, :10] *= 10.0 ** -np.arange(0, 5, 0.5)
    left[:, 10:] *= tail
    dense = left @ right
    lost = np.linalg.norm(np.linalg.svd(dense, compute_uv=False)[10:])

    basis = factorise.WAYS["Krylov"].space(left, right, 10).basis

    assert np.linalg.norm(dense - dense @ basis.T @ basis) < lost + 1e-6 * np.linalg.norm(dense)
