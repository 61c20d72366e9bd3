"""The bandwidth between a site and the store, measured with the transfer of a test object of random bytes.

The object begins small and grows while the link is fast, so that a measurement takes about two seconds on any link and the
time to connect counts for little. A failed transfer costs the measurement, not the profile.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedpipe_trainer.contract.task import Url
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.task_runtime import TaskRuntime

_LOG = logging.getLogger(__name__)

_SMALLEST: Final = 256 << 10
_LARGEST: Final = 8 << 20
_GROWTH: Final = 4
_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Bandwidth:
    """In bits per second; None where no transfer succeeded."""

    up: float | None = None
    down: float | None = None


def measure(runtime: TaskRuntime, write: Url | None, read: Url | None) -> Bandwidth:
    """Upload the test object and read it back; then replace it by an empty one, so that the store keeps nothing."""
    if write is None or read is None:
        return Bandwidth()
    up = down = None
    try:
        up, size = _upload_larger_and_larger(runtime, write)
        down = _rate(size, _seconds(runtime, lambda: runtime.download(read, runtime.folder / "probe", attempts=1)))
        _upload(runtime, write, 0)
    except TaskFailed as failure:
        _LOG.warning("the bandwidth to the store could not be measured completely, the site's claim is used: %s", failure.message)
    return Bandwidth(up, down)


def _upload_larger_and_larger(runtime: TaskRuntime, url: Url) -> tuple[float, int]:
    """The rate of the last upload in bits per second, and its size: the largest that is expected to take at most two seconds."""
    size = _SMALLEST
    seconds = _upload(runtime, url, size)
    while size < _LARGEST and seconds * _GROWTH <= _SECONDS:
        size = min(size * _GROWTH, _LARGEST)
        seconds = _upload(runtime, url, size)
    return _rate(size, seconds), size


def _upload(runtime: TaskRuntime, url: Url, size: int) -> float:
    path = runtime.folder / "probe"
    path.write_bytes(os.urandom(size))  # bytes that no proxy or file system can compress
    return _seconds(runtime, lambda: runtime.upload(path, url, attempts=1))


def _seconds(runtime: TaskRuntime, transfer: Callable[[], object]) -> float:
    started = runtime.elapsed_seconds()
    transfer()
    return runtime.elapsed_seconds() - started


def _rate(size: int, seconds: float) -> float:
    return 8.0 * size / max(seconds, 1e-9)
