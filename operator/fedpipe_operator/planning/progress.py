"""What a round is worth to the run: the steps of one optimiser that it stands for.

The aggregation averages the directions of the sites' steps, and an update is about as long as the harmonic mean H of their numbers
(`aggregation/normalization`): the few steps of a slow site count. Therefore slow sites take smaller batches and up to as many steps as the
fastest (`batches`). And the further the sites go apart on their own data, the less a further step brings:

    progress = H / (1 + passes over the fleet's data / 0.6)

So the best length of a round is between very short, where the slowest sites spend it on loading the model, and very long. Measured for
rounds of 8 to 50 s in `benchmarks/fleet`, and for 10 to 40 steps of equal sites (`benchmarks/README.md`, *The length of a round*).
"""

from math import fsum
from typing import Final

import numpy as np

from fedpipe_operator.planning.memory_model import Float64

HALF_WORTH: Final = 0.6
"""In a round of so many passes over the fleet's data, counted in steps of the whole model, a step is worth half of one in short rounds."""
_TINY: Final = 1e-12


def round_progress(steps: Float64, more_steps: Float64, samples: Float64, batch: float | Float64) -> float:
    """The steps of one optimiser that a round stands for.

    Args:
        steps: of each site with the run's batch, each worth a step of the whole model with the largest ranks.
        more_steps: by site, how many times as many steps it can take with smaller batches.
        samples: training samples of each site.
        batch: samples of a step with the run's batch: one number, or that of each site.
    """
    taken = np.maximum(np.minimum(steps.max(), more_steps * steps), _TINY)
    # Summed exactly and not by BLAS, whose last digits depend on the processor: plans are the same on every machine.
    total = fsum(samples)
    passes = fsum(batch * steps) / total
    return total / fsum(samples / taken) / (1 + passes / HALF_WORTH)
