"""The norms and alignments of increments, compared with the dense matrices in float64."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_operator.aggregation.factors import Factors, SiteFactors, SiteWeight, WeightUpdates
from fedpipe_operator.aggregation.increments import UNCHANGED, Alignments, WeightIncrements, measure

deterministic = settings(derandomize=True, deadline=None, max_examples=60)
RANKS = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def random_factors(rng: np.random.Generator, shape: tuple[int, int], rank: int) -> Factors:
    b, a = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    return Factors(b=b.astype(np.float32), a=a.astype(np.float32))


def product(factors: Factors, rank: int | None = None) -> np.ndarray:
    return factors.b[:, :rank].astype(np.float64) @ factors.a[:rank].astype(np.float64)


def identity(site: SiteFactors) -> SiteFactors:
    return site


def measured(sites: list[SiteFactors], previous: Factors | None, new: Factors) -> WeightIncrements:
    weights = tuple(SiteWeight(site=str(i), rank=len(site.factors.a), share=site.share) for i, site in enumerate(sites))
    updates = WeightUpdates("w", len(new.b), new.a.shape[1], weights, global_rank=len(previous.a) if previous else 0)
    return measure(updates, [partial(identity, site) for site in sites], previous, new)


@deterministic
@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 40), st.integers(1, 40)), RANKS, st.integers(0, 12), st.integers(1, 12))
def test_norms_and_inner_products_equal_the_dense_ones(
    seed: int, shape: tuple[int, int], ranks: list[int], previous_rank: int, new_rank: int
) -> None:
    rng = np.random.default_rng(seed)
    previous = random_factors(rng, shape, previous_rank) if previous_rank else None
    new = random_factors(rng, shape, new_rank)
    sites = [SiteFactors(share=1 / len(ranks), scale=float(rng.uniform(0.1, 8)), factors=random_factors(rng, shape, r)) for r in ranks]

    found = measured(sites, previous, new)

    whole = product(new) - (product(previous) if previous else 0)
    assert found.squared_norm == pytest.approx((whole**2).sum(), rel=1e-9)
    for index, (site, rank) in enumerate(zip(sites, ranks, strict=True)):
        own = site.scale * product(site.factors) - (product(previous, rank) if previous else 0)
        assert found.site_squared_norms[str(index)] == pytest.approx((own**2).sum(), rel=1e-9)
        expected = pytest.approx((own * whole).sum(), rel=1e-6, abs=1e-9 * np.linalg.norm(own) * np.linalg.norm(whole))
        assert found.inner_products[str(index)] == expected


def test_an_alignment_is_the_cosine_over_all_weights_that_the_site_trained() -> None:
    alignments = Alignments()
    alignments.add(WeightIncrements(9.0, {"a": 16.0, "b": 4.0}, {"a": 12.0, "b": -6.0}))
    alignments.add(WeightIncrements(16.0, {"a": 9.0}, {"a": 0.0}))
    alignments.add(UNCHANGED)

    assert (alignments.norm("a"), alignments.cosine("a")) == (5.0, pytest.approx(12 / (5 * 5)))
    assert (alignments.norm("b"), alignments.cosine("b")) == (2.0, -1.0)


def test_a_site_that_did_not_move_has_no_alignment() -> None:
    alignments = Alignments()
    alignments.add(WeightIncrements(9.0, {"still": 0.0}, {"still": 0.0}))

    assert (alignments.norm("still"), alignments.cosine("still")) == (0.0, None)
    assert (alignments.norm("without-adapters"), alignments.cosine("without-adapters")) == (0.0, None)
