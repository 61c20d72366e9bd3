"""Several pieces of work at once, with results in order: how a round's aggregation uses more than one core.

Each thread's matrix products run on that thread alone. Small products spread over cores by the BLAS itself gain less, come to a halt
where another process holds one of the cores, and may round differently with another number of cores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
T = TypeVar("T")


def ordered_parallel_map(work: Callable[[Item], T], items: Iterable[Item], threads: int) -> Iterator[T]:
    """`work(item)` for each item, in the items' order; no more than `threads` + 1 items are under way or waiting to be taken.

    Raises what `work` raises, when that item's turn comes; no further items are then taken.
    """
    under_way: deque[Future[T]] = deque()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
