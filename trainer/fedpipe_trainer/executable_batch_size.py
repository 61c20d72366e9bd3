"""Batches that memory can hold: halved as often as it runs out, down to one sample. Training and evaluation share it."""

import logging
from collections.abc import Callable
from typing import TypeVar

from fedpipe_trainer import device
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


def find_executable_batch_size(do: Callable[[int], T], size: int, *, longest: int) -> tuple[T, int]:
    """What `do(size)` gives, the size halved as often as memory needs it; and the size that fitted.

    Args:
        do: work on so many samples at once. It is begun anew with each size, so it may build on nothing it left before.
        size: the samples to begin with.
        longest: tokens of the longest sample, for the message.

    Raises:
        TaskFailed: OutOfMemory with a single sample.
    """
    while True:
        try:
            return do(size), size
        except (RuntimeError, MemoryError) as error:
            if not device.is_out_of_memory(error):
                raise
            if size == 1:
                msg = f"one sample of up to {longest} tokens does not fit memory: plan fewer bits or a smaller maxLength"
                raise TaskFailed(FailureReason.OUT_OF_MEMORY, msg) from error
        # Out here the error is gone, and with its traceback the tensors of what failed.
        device.release_freed()
        size = (size + 1) // 2
        _LOG.warning("memory ran out: going on with %d at once", size)
