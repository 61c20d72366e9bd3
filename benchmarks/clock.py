"""Wall-clock and CPU time of a block of code."""

import time
from typing import Self


class Clock:
    """A context manager that measures its body."""

    seconds = cpu_seconds = 0.0

    def __enter__(self) -> Self:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds, self.cpu_seconds = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
