"""Random factors of one weight from several sites, and the products that they stand for."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fedpipe_operator.aggregation.factors import Factors, SiteFactorReaders, SiteFactors, SiteWeight, WeightUpdates


def random_factors(rng: np.random.Generator, shape: tuple[int, int], rank: int) -> SiteFactors:
    b, a = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    factors = Factors(b=b.astype(np.float32), a=a.astype(np.float32))
    return SiteFactors(share=1.0, scale=float(rng.uniform(0.1, 8)), factors=factors)


def random_sites(rng: np.random.Generator, shape: tuple[int, int], ranks: Sequence[int]) -> list[SiteFactors]:
    shares = rng.dirichlet(np.ones(len(ranks)))
    return [replace(random_factors(rng, shape, rank), share=float(share)) for rank, share in zip(ranks, shares, strict=True)]


def identity(site: SiteFactors) -> SiteFactors:
    return site


def readers_of(sites: Sequence[SiteFactors]) -> SiteFactorReaders:
    return [partial(identity, site) for site in sites]


def product(factors: Factors) -> np.ndarray:
    return factors.b.astype(np.float64) @ factors.a.astype(np.float64)


def updates_of(sites: Sequence[SiteFactors], previous: Factors | None = None, server_rate: float = 1.0) -> WeightUpdates:
    return WeightUpdates(
        weight="w",
        d_out=len(sites[0].factors.b),
        d_in=sites[0].factors.a.shape[1],
        sites=tuple(SiteWeight(site=str(i), rank=len(p.factors.a), share=p.share) for i, p in enumerate(sites)),
        global_rank=len(previous.a) if previous else 0,
        server_rate=server_rate,
    )
