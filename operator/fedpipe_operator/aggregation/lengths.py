"""The length of an update, from its factors, in a way that cancellation cannot cheat.

‖B·A‖² is the sum of the products of two Gram matrices, n² numbers that may cancel. Where two components of 10³⁰ cancel up to the last
bit of float32, the difference is 10²², and rounding errors of the sum hide it: the sum may come out as 0, or below. So the rounding error
is bounded and added. For l_i the columns of B and r_i the rows of A, by the standard model of rounding (Higham, *Accuracy and Stability
of Numerical Algorithms*, §3.1), in any order of summation,

    | computed − ‖B·A‖² |  ≤  (d_out + d_in + n² + 4) · ε · S²,   S = Σ ‖l_i‖ ‖r_i‖,   ε = 2⁻⁵².

What is returned is never below the true length. At d = 4096 and 32 components it adds 10⁻⁶ S at most: nothing for honest updates, of
which S is a few lengths, while factors that cancel from an S of 10¹⁰ on are longer than `spec.aggregation.maxNorm` by that alone.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from fedpipe_operator.aggregation.factors import Factors, Float64

SquaredLengths = Callable[[Factors, float, Factors | None], tuple[float, ...]]
"""Of all that a method averages: from a site's factors, its scale, and the global components that it started from, if any."""
OF_A: Final = 2
"""Which length of `of_factors` is that of A: without a start it is of A itself, which does not grow with the steps."""
_EPSILON: Final = float(np.finfo(np.float64).eps)
_OTHER_ROUNDINGS: Final = 4
"""Of the scale, of the products, and of the bound itself."""


def of_product(factors: Factors, scale: float, start: Factors | None) -> tuple[float]:
    """An upper bound on ‖s·B·A − B_g·A_g‖²_F: what is computed from L = [s·B | −B_g], R = [A ; A_g], and its rounding error.

    The dense matrix is not formed.
    """
    left: Float64 = factors.b * np.float64(scale)
    right: Float64 = factors.a.astype(np.float64)
    if start is not None:
        left, right = np.hstack([left, -start.b]), np.vstack([right, start.a])
    left_gram, right_gram = left.T @ left, right @ right.T
    sizes = float(np.sqrt(np.diag(left_gram)) @ np.sqrt(np.diag(right_gram)))
    return (max(0.0, float(np.vdot(left_gram, right_gram))) + rounding(len(left), right.shape[1], len(right)) * sizes**2,)


def of_factors(factors: Factors, scale: float, start: Factors | None) -> tuple[float, float, float]:
    """For methods that average A and B apart: of the product as above, and of the increments of s·B and of A.

    A factor without the other counts there: `B = 0, A = 10³⁰` is no change of this site's product, and of the averages' product it is.
    In round 1, where A's start is not known, it is A itself.
    """
    b: Float64 = factors.b * np.float64(scale)
    a: Float64 = factors.a.astype(np.float64)
    if start is not None:
        known = len(start.a)
        b[:, :known] -= start.b
        a[:known] -= start.a
    return *of_product(factors, scale, start), float(np.vdot(b, b)), float(np.vdot(a, a))


def rounding(d_out: int, d_in: int, components: int) -> float:
    """The bound on the rounding error of a squared length, in units of S²."""
    return (d_out + d_in + components**2 + _OTHER_ROUNDINGS) * _EPSILON
