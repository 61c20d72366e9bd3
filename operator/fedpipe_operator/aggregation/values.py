"""The values that aggregation methods take and give: one weight's factors, from the sites and of the global adapter.

Shapes: `a` is r × d_in, `b` is d_out × r, so that the update of a weight W (d_out × d_in) is scale · b @ a.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedpipe_operator.aggregation.tensors import Float32

Float64 = npt.NDArray[np.float64]

ROW_NORM: Final = 1 / math.sqrt(3)
"""Norm of a row of the global A: that of a freshly initialised one (entries uniform in ±1/√d_in), so that both learn at one pace."""


class CannotAggregateError(ValueError):
    """This method cannot aggregate these updates; the message says which weight and why."""


@dataclass(frozen=True)
class Share:
    """What a site puts into one weight, known before any tensor is read."""

    site: str
    samples: int
    rank: int


@dataclass(frozen=True)
class Outline:
    """One weight before any tensor is read: its shape, who trained it (sorted by site, rank > 0), the rank of the global factors."""

    weight: str
    d_out: int
    d_in: int
    shares: tuple[Share, ...]
    global_rank: int

    @property
    def samples(self) -> int:
        """Samples of all sites that trained this weight."""
        return sum(share.samples for share in self.shares)


@dataclass(frozen=True)
class Factors:
    """A factor pair; the update it stands for is b @ a."""

    b: Float32
    a: Float32


@dataclass(frozen=True)
class Part:
    """One site's trained factors of a weight: its update is scale · b @ a."""

    samples: int
    scale: float
    factors: Factors


Parts = Sequence[Callable[[], Part]]
"""Parts that are read when they are called for, every time anew: a method may let go of one before it takes the next."""


@dataclass(frozen=True)
class Merged:
    """The new global factors, and the share of the squared singular values that the cut to their rank lost."""

    factors: Factors
    truncated_energy: float = 0.0


@dataclass(frozen=True)
class Method:
    """An aggregation rule for LoRA factors."""

    rank: Callable[[Outline, int], int]
    """The rank of the result from the outline and the largest rank allowed; raises `CannotAggregateError`."""
    merge: Callable[[Outline, Parts, Factors | None, int], Merged]
    """The result of that rank from the parts (in the outline's order) and the global factors, if any."""
