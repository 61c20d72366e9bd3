"""The bandwidth between a site and the store, measured with transfers of a test object of random bytes in both directions.

The object begins small and grows while the link is fast, so that the last transfer takes about two seconds on most links. Below 256 KiB
the time to connect counts for much, so there it grows as long as a transfer is expected to take at most ten: with 40 kbit/s or more
in both directions all of them together take about 20 seconds at most. A failed transfer costs what it would have measured: the
figures of smaller objects count.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fedpipe_trainer.contract import Upload
from fedpipe_trainer.contract.task import PROBE_BYTES, Url
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.task_runtime import TaskRuntime

_LOG = logging.getLogger(__name__)

_SMALLEST: Final = 16 << 10
_ENOUGH: Final = 256 << 10
"""Bytes from which on the time to connect counts for little."""
_GROWTH: Final = 4
_SECONDS: Final = 2.0
_MOST_SECONDS: Final = 10.0
"""Of a transfer of at most `_ENOUGH` bytes."""


@dataclass(frozen=True)
class Bandwidth:
    """In bits per second; None where no transfer succeeded."""

    up: float | None = None
    down: float | None = None


def measure(runtime: TaskRuntime, write: Upload | None, read: Url | None) -> Bandwidth:
    """Upload the test object and read it back, larger and larger; then replace it by an empty one, so that the store keeps nothing."""
    link = Bandwidth()
    if write is None or read is None:
        return link
    try:
        for link in _measured_with_larger_objects(runtime, write, read):  # noqa: B007 -- the last one counts, also after a failure
            pass
        _upload(runtime, write, 0)
    except TaskFailed as failure:
        _LOG.warning("the bandwidth to the store was not measured completely: %s", failure.message)
    return link


def _measured_with_larger_objects(runtime: TaskRuntime, write: Upload, read: Url) -> Iterator[Bandwidth]:
    """What is known after each transfer, of objects as large as are expected not to take too long in either direction."""
    size, down = _SMALLEST, None
    while True:
        sent = _upload(runtime, write, size)
        yield Bandwidth(_rate(size, sent), down)
        received = _seconds(runtime, lambda: runtime.download(read, runtime.folder / "probe", attempts=1))
        down = _rate(size, received)
        yield Bandwidth(_rate(size, sent), down)
        larger = min(size * _GROWTH, PROBE_BYTES)
        if larger == size or max(sent, received) * _GROWTH > (_MOST_SECONDS if larger <= _ENOUGH else _SECONDS):
            return
        size = larger


def _upload(runtime: TaskRuntime, to: Upload, size: int) -> float:
    path = runtime.folder / "probe"
    path.write_bytes(os.urandom(size))  # bytes that no proxy or file system can compress
    return _seconds(runtime, lambda: runtime.upload(path, to, attempts=1))


def _seconds(runtime: TaskRuntime, transfer: Callable[[], object]) -> float:
    started = runtime.elapsed_seconds()
    transfer()
    return runtime.elapsed_seconds() - started


def _rate(size: int, seconds: float) -> float:
    return 8.0 * size / max(seconds, 1e-9)
