"""The most memory that this process has while it does something: what is freed again counts, too."""

from collections.abc import Callable
from pathlib import Path

_RESET = "5"
"""See proc(5), clear_refs: the high-water mark begins again at what is resident now."""


def peak_memory(work: Callable[[], None]) -> int:
    """Bytes that were resident at most while this was done."""
    Path("/proc/self/clear_refs").write_text(_RESET)
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
