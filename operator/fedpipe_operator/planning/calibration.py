"""How a site's measured peaks correct the analytic memory model.

The analytic form knows how memory grows with batch and length, but not what an allocator, a kernel or a library
adds. So for each bit width `peak = known + offset + factor · activations` is fitted to the profile's points. Without
points the factor is 1 and the offset 0, the analytic form; each point moves them as far as it outweighs that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# How sure each part is, as standard deviations. Peaks of the same step differ by some 5 % between processes (the
# allocator); the analytic activations are right to about a half, the rest to about 200 MB (root mean square of what is
# left over in the eight combinations of model and bit width of tests/planning/measured_peaks.csv: 194 MB).
_POINT_SHARE: Final = 0.05
_FACTOR_SPREAD: Final = 0.5
_OFFSET_SPREAD: Final = 200e6
_LEAST_FACTOR: Final = 0.1
"""More tokens never need less memory, whatever the points say."""


@dataclass(frozen=True)
class Observation:
    """One measured peak, and what the model knew of it. All in bytes."""

    peak: float
    known: float
    activations: float


@dataclass(frozen=True)
class Calibration:
    """`peak = known + offset + factor · activations`."""

    factor: float = 1.0
    offset: float = 0.0


def calibrate(observations: Iterable[Observation]) -> Calibration:
    """The most probable factor and offset: weighted least squares with the analytic form as a prior (two unknowns)."""
    ff, fo, oo = 1 / _FACTOR_SPREAD**2, 0.0, 1 / _OFFSET_SPREAD**2
    f, o = 1 / _FACTOR_SPREAD**2, 0.0
    for seen in observations:
        certainty = 1 / (_POINT_SHARE * seen.peak) ** 2
        excess = seen.peak - seen.known
        ff += certainty * seen.activations**2
        fo += certainty * seen.activations
        oo += certainty
        f += certainty * seen.activations * excess
        o += certainty * excess
    factor = max(_LEAST_FACTOR, (f * oo - o * fo) / (ff * oo - fo * fo))
    return Calibration(factor=factor, offset=(o - factor * fo) / oo)
