"""A parallel map with ordered results, which lets a round's aggregation use several cores.

Each thread's matrix products run on that thread only. Small products that the BLAS itself spreads over cores gain less, stall where
another process occupies one of the cores, and may round differently with another number of cores.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
T = TypeVar("T")

_MAX_THREADS: Final = 4
"""Each holds one weight of all sites in memory."""


def thread_count() -> int:
    """The number of weights to aggregate at a time."""
    return min(_MAX_THREADS, len(os.sched_getaffinity(0)))


def ordered_parallel_map(work: Callable[[Item], T], items: Iterable[Item], threads: int) -> Iterator[T]:
    """`work(item)` for each item, in the items' order; at most `threads` + 1 items are in progress or done but not yet consumed.

    An exception of `work` is raised at the position of its item; no further items are taken after that.
    """
    pending: deque[Future[T]] = deque()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
