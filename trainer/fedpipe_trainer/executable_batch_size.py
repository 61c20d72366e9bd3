"""Finds a batch size that fits in memory by halving it, down to one sample. Training and evaluation both use it."""

import logging
from collections.abc import Callable
from typing import TypeVar

from fedpipe_trainer import device
from fedpipe_trainer.contract import FailureReason, halved
from fedpipe_trainer.errors import TaskFailed

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


def find_executable_batch_size(function: Callable[[int], T], size: int, *, longest: int) -> tuple[T, int]:
    """Call `function(size)`, with half the size whenever memory runs out; the result, and the size that fitted in memory.

    Args:
        function: processes this many samples at once. It is called again for each size, so it must discard what a failed call left.
        size: the number of samples to begin with.
        longest: number of tokens of the longest sample, for the error message.

    Raises:
        TaskFailed: OutOfMemory, a single sample does not fit in memory.
    """
    while True:
        try:
            return function(size), size
        except (RuntimeError, MemoryError) as error:
            if not device.is_out_of_memory(error):
                raise
            if size == 1:
                msg = f"one sample of up to {longest} tokens does not fit in memory: use fewer bits or a smaller maxLength"
                raise TaskFailed(FailureReason.OUT_OF_MEMORY, msg) from error
        # Outside of the except block, the error and its traceback are gone, and with them the tensors of the failed call.
        device.trim_memory()
        size = halved(size)
        _LOG.warning("out of memory: continuing with %d samples at once", size)
