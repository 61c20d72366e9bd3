"""The values that aggregation methods take and return: the factors of one weight, from the sites and of the global adapter.

Shapes: `a` is r × d_in, `b` is d_out × r, so that the update of a weight W (d_out × d_in) is scale · b @ a.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedpipe_operator.aggregation.tensors import Float32

Float64 = npt.NDArray[np.float64]


class CannotAggregateError(ValueError):
    """The method cannot aggregate these updates; the message names the weight and the reason."""


@dataclass(frozen=True)
class SiteWeight:
    """What one site contributes to one weight, known before any tensor is read."""

    site: str
    rank: int
    share: float
    """p_k: weight of its increment in the average over the sites that trained this weight; the shares add up to 1."""
    clip: float = 1.0
    """c_k: what its increment is multiplied by; below 1 if it was clipped (`clipping`)."""
    pace: float = 1.0
    """What makes its increment one of the round's common number of steps (`normalization.Combination.paces`)."""

    @property
    def coefficient(self) -> float:
        """p_k c_k."""
        return self.share * self.clip


@dataclass(frozen=True)
class WeightUpdates:
    """The updates of one weight before any tensor is read: its shape, the sites that trained it, the rank of its global factors."""

    weight: str
    d_out: int
    d_in: int
    sites: tuple[SiteWeight, ...]
    """Sorted by site; every rank is positive."""
    global_rank: int
    server_rate: float = 1.0
    """The factor γ of the averaged increment."""


@dataclass(frozen=True)
class Factors:
    """A pair of factors; the update they represent is b @ a."""

    b: Float32
    a: Float32


@dataclass(frozen=True)
class SiteFactors:
    """One site's trained factors of a weight: its update is scale · b @ a."""

    share: float
    """See `SiteWeight.coefficient`."""
    scale: float
    factors: Factors


SiteFactorReaders = Sequence[Callable[[], SiteFactors]]
"""One reader per site. Each call reads the factors again, so that a method needs to hold those of one site only."""


@dataclass(frozen=True)
class AggregatedFactors:
    """The new global factors, and the fraction of the squared singular values that truncation to their rank lost."""

    factors: Factors
    truncated_energy: float = 0.0
