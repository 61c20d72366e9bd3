"""Model FLOPs utilisation: how much of the device's peak FLOP/s a training uses."""

from fedpipe_trainer import device
from fedpipe_trainer.model import Base


def model_flops_utilisation(base: Base, flop: float | None, seconds: float) -> float | None:
    """FLOP per second over the measured peak (dimensionless), of one process.

    Args:
        base: the base, which has the device and the type that it computes in.
        flop: that a process computed (`flops.training_flop`); None: not known.
        seconds: in which it did.
    """
    if flop is None or seconds <= 0:
        return None
    return flop / seconds / device.peak_flops(base.device, base.compute_dtype)
