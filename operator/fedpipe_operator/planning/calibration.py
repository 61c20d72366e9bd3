"""Calibration of the analytic memory model with a site's measured peaks.

The analytic form describes how memory grows with batch and length, but not what an allocator, a kernel or a library
adds. For each bit width, `peak = known + offset + factor · activations` is therefore fitted to the profile's points, with
the analytic form (factor 1, offset 0) as the prior. Without points the fit is the prior.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

# Standard deviations of the three error terms. Peaks of the same step differ by some 5 % between processes (the
# allocator); the analytic activations are accurate to about a half, everything else to about 200 MB (root mean square of
# the residuals of the eight combinations of model and bit width in tests/planning/measured_peaks.csv: 194 MB).
_PEAK_RELATIVE_SD: Final = 0.05
_FACTOR_SD: Final = 0.5
_OFFSET_SD: Final = 200e6
_MIN_FACTOR: Final = 0.1
"""Keeps the forecast increasing with the number of tokens, whatever the points imply."""


@dataclass(frozen=True)
class Observation:
    """One measured peak and the two terms that the analytic form gives for it. All in bytes."""

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
    ff, fo, oo = 1 / _FACTOR_SD**2, 0.0, 1 / _OFFSET_SD**2
    f, o = 1 / _FACTOR_SD**2, 0.0
    for observed in observations:
        precision = 1 / (_PEAK_RELATIVE_SD * observed.peak) ** 2
        excess = observed.peak - observed.known
        ff += precision * observed.activations**2
        fo += precision * observed.activations
        oo += precision
        f += precision * observed.activations * excess
        o += precision * excess
    factor = max(_MIN_FACTOR, (f * oo - o * fo) / (ff * oo - fo * fo))
    return Calibration(factor=factor, offset=(o - factor * fo) / oo)
