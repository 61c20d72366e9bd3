"""Plain averaging, for tensors that are trained and sent whole (a classification head)."""

from collections.abc import Iterable

import numpy as np

from fedpipe_operator.aggregation.tensors import Float32
from fedpipe_operator.aggregation.values import Float64


def average(parts: Iterable[tuple[int, Float32]]) -> Float32:
    """Σ n_k x_k / Σ n_k over (n_k, x_k), summed in float64 in the order given; one x_k is held at a time.

    Raises:
        ValueError: there are no parts.
    """
    total, weighted = 0, None
    for samples, tensor in parts:
        term: Float64 = tensor.astype(np.float64) * samples
        weighted = term if weighted is None else weighted + term
        total += samples
    if weighted is None:
        raise ValueError("no tensor to average")
    return (weighted / total).astype(np.float32)
