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
    """The most probable factor and offset: weighted least squares with the analytic form as a prior (two unknowns).

    The prior of the offset is an observation without activations and excess. Deviations from the weighted means are never subtracted
    from each other, so that no precision, however large, cancels the prior of the factor.
    """
    points = [(1 / _OFFSET_SD**2, 0.0, 0.0)]
    points += [(1 / (_PEAK_RELATIVE_SD * one.peak) ** 2, one.activations, one.peak - one.known) for one in observations]
    total = sum(weight for weight, _, _ in points)
    activations = sum(weight * activation for weight, activation, _ in points) / total
    excess = sum(weight * exceeding for weight, _, exceeding in points) / total
    variance = sum(weight * (activation - activations) ** 2 for weight, activation, _ in points)
    covariance = sum(weight * (activation - activations) * (exceeding - excess) for weight, activation, exceeding in points)
    prior = 1 / _FACTOR_SD**2
    factor = max(_MIN_FACTOR, (covariance + prior) / (variance + prior))
    return Calibration(factor=factor, offset=excess - factor * activations)
