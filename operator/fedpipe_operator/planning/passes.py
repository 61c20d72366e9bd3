"""How a site's samples are divided into optimiser steps, as the trainer's `compose_batches` does. Pure.

A pass over n samples has ceil(n / batch) steps of nearly equal size. So with a batch of 16, a step of a site of 17 samples has 8 or 9, and
one of a site of 2 samples has 2: forecasts, and what is said of a plan, count these.
"""

from math import ceil

from fedpipe_operator.formatting import counted

_ROUNDING = 1e-9


def batches_of_a_pass(samples: int, batch: int) -> int:
    """The steps of a pass over so many samples; at least one."""
    return max(1, ceil(samples / batch))


def samples_of_a_step(samples: int, batch: int) -> float:
    """Samples of a step, on average over a pass."""
    return samples / batches_of_a_pass(samples, batch)


def largest_step(samples: int, batch: int) -> int:
    """Samples of the largest step; at least one. As a batch, it divides the samples into the same steps."""
    return max(1, ceil(samples_of_a_step(samples, batch)))


def largest_pass(samples: int, devices: int) -> int:
    """Samples of a step that a device computes at once, at most, if each of them computes its part at once."""
    return ceil(samples / devices)


def steps_of_passes(passes: float, samples: int, batch: int) -> int:
    """The steps of so many passes over the samples, the last one begun included; at least one."""
    return max(1, ceil(passes * batches_of_a_pass(samples, batch) - _ROUNDING))


def passes(samples: int, steps: int, batch: int) -> float:
    """The passes over so many samples that these steps make."""
    return steps / batches_of_a_pass(samples, batch)


def step_text(samples: int, batch: int) -> str:
    """The samples of a step: `16 samples`, or `8 or 9 samples`."""
    largest = largest_step(samples, batch)
    smaller = f"{largest - 1} or " if samples % batches_of_a_pass(samples, batch) else ""
    return f"{smaller}{counted(largest, 'sample')}"
