"""What the server makes of a round's aggregated increment (Reddi et al., arXiv 2003.00295; decoupled decay as in arXiv 1711.05101).

With W_r a global tensor after round r (a product B·A, or a head tensor as it is) and W̄ what the updates of round r + 1 were aggregated to,
the pseudo-gradient is Δ = W̄ − W_r, and

    v_{r+1} = β₂ v_r + (1 − β₂) s            s: mean square of Δ's elements; FedYogi: v_r − (1 − β₂) s sign(v_r − s); v before is τ²
    a_{r+1} = η / (√v_{r+1} + τ)             FedAvg and FedAvgM: η
    m_{r+1} = β m_r + d Δ                    d: 1 (FedAvg, FedAvgM), 1 − β₁
    W_{r+1} = k W_r + a_{r+1} m_{r+1}        k: 1 − η·weightDecay for FedAdamW, else 1

The momentum needs no state: m_r = (W_r − k_r W_{r−1}) / a_r follows from the global adapters of the last two rounds, which the store has,
so that W_{r+1} is a weighted sum of W̄, W_r and W_{r−1}, of low rank as they are. v is one number for each tensor, not one for
each element: a product's elementwise second moment has no low rank. (Adam-mini, arXiv 2406.16793, has one for each block of the network.)
Without the bias correction of Adam, as in the paper.

A tensor that no site trained in a round stands still, and so has no momentum in the next.
"""

import math
from typing import Final, NamedTuple

from fedpipe_operator.api.aggregation import ADAPTIVE, OptimizerType, ServerOptimizer

_ADAPTIVE_RATE: Final = 0.01
_MOMENTUM: Final = 0.5
_BETA1: Final = 0.9
_BETA2: Final = 0.99
_TAU: Final = 1e-3
_WEIGHT_DECAY: Final = 0.01


class Weights(NamedTuple):
    """Of the sum that is the new tensor."""

    aggregated: float
    """Of W̄."""
    current: float
    """Of W_r."""
    before: float
    """Of W_{r−1}."""


def second_moment(optimizer: ServerOptimizer, known: float | None, mean_square: float) -> float | None:
    """v_{r+1}; None for an optimizer that has none.

    Args:
        optimizer: of this round.
        known: v_r; None if the tensor has none yet.
        mean_square: of Δ's elements.
    """
    if optimizer.type not in ADAPTIVE:
        return None
    v, fresh = _tau(optimizer) ** 2 if known is None else known, 1 - _or(optimizer.beta2, _BETA2)
    if optimizer.type is OptimizerType.FEDYOGI:
        return v - fresh * mean_square * ((v > mean_square) - (v < mean_square))
    return v + fresh * (mean_square - v)


def weights(optimizer: ServerOptimizer, v: float | None, last: ServerOptimizer | None, last_v: float | None) -> Weights:
    """How W̄, W_r and W_{r−1} are summed.

    Args:
        optimizer: of this round.
        v: its v_{r+1} of the tensor.
        last: of the round before; None if W_{r−1} is not known, so that there is no momentum.
        last_v: its v_r of the tensor.
    """
    a = _step_size(optimizer, v)
    momentum = 0.0 if last is None else a / _step_size(last, last_v) * _momentum(optimizer)
    aggregated = a * (1 - _momentum(optimizer) if optimizer.type in ADAPTIVE else 1)
    return Weights(aggregated, _kept(optimizer) + momentum - aggregated, -momentum * _kept(last) if last else 0.0)


def _step_size(optimizer: ServerOptimizer, v: float | None) -> float:
    """The factor a of the momentum."""
    if optimizer.type not in ADAPTIVE:
        return _or(optimizer.learning_rate, 1 - _momentum(optimizer))
    tau = _tau(optimizer)
    return _or(optimizer.learning_rate, _ADAPTIVE_RATE) / (math.sqrt(tau**2 if v is None else v) + tau)


def _momentum(optimizer: ServerOptimizer) -> float:
    """The share of the momentum that a round keeps, β or β₁."""
    if optimizer.type in ADAPTIVE:
        return _or(optimizer.beta1, _BETA1)
    return _or(optimizer.momentum, _MOMENTUM) if optimizer.type is OptimizerType.FEDAVGM else 0.0


def _kept(optimizer: ServerOptimizer) -> float:
    """The share of the adapter that weight decay leaves, k."""
    if optimizer.type is not OptimizerType.FEDADAMW:
        return 1.0
    return 1 - _or(optimizer.learning_rate, _ADAPTIVE_RATE) * _or(optimizer.weight_decay, _WEIGHT_DECAY)


def _tau(optimizer: ServerOptimizer) -> float:
    return _or(optimizer.tau, _TAU)


def _or(given: float | None, default: float) -> float:
    return default if given is None else given
