"""Model FLOPs utilisation: how much of the device's peak FLOP/s a training uses."""

from fedpipe_trainer import device
from fedpipe_trainer.contract import Objective, Preference, Seq2SeqLM
from fedpipe_trainer.model import Base, lower_parameters, matrix_parameters


def model_flops_utilisation(
    base: Base, objective: Objective, tokens_per_second: float, *, lowest_layer: int = 0, computed: float = 1.0
) -> float | None:
    """FLOP per token and second, over the measured peak (dimensionless).

    Per parameter of a matrix these are 4 FLOP, below the lowest trained layer 2, and 0 where the activations come from a cache.
    arXiv 2310.03150 uses 6 per parameter; here it is 4, because no gradients are computed for the frozen weights.

    Args:
        base: the base without adapters.
        objective: of a Seq2SeqLM the utilisation is None: a token passes through only one of two stacks; and of a Preference, where
            it may pass through the reference, too.
        tokens_per_second: in training.
        lowest_layer: the lowest trained layer.
        computed: the share of the forward passes that computed the layers below, instead of reading their output from the cache.
    """
    if isinstance(objective, Seq2SeqLM | Preference):
        return None
    lower = lower_parameters(base.model, lowest_layer)
    flop = 4.0 * (matrix_parameters(base.model) - lower) + 2.0 * lower * computed
    return flop * tokens_per_second / device.peak_flops(base.device, base.compute_dtype)
