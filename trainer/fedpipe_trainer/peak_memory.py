"""Peak memory of a task: of the device if a GPU was used, otherwise of this process.

The peak of a process that serves several tasks persists from one task to the next, so each task resets it at its start.
This module never imports torch: a task that failed before it needed torch ran on the CPU.
"""

import logging
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import ModuleType

_LOG = logging.getLogger(__name__)

_CLEAR_REFS: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"  # proc(5): resets the peak resident set size


def reset_peak() -> None:
    """Reset the peak, so that `peak_bytes` measures from now on."""
    cuda = _cuda()
    if cuda is not None:
        cuda.empty_cache()  # memory that an earlier task freed and the allocator kept is not used by this task
        cuda.reset_peak_memory_stats()
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError as error:
        _LOG.warning("cannot reset the peak memory of this process (%s): the reported peak is that since the process started", error)


def peak_bytes() -> int:
    """Peak memory in bytes since `reset_peak`."""
    cuda = _cuda()
    if cuda is not None:
        return int(cuda.max_memory_reserved())
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name() -> str:
    """The name of the GPU that this process computes on, or "cpu"."""
    cuda = _cuda()
    return "cpu" if cuda is None else str(cuda.get_device_name())


def _cuda() -> "ModuleType | None":
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None
