"""The device a task runs on: its memory, its limit, its peak FLOP/s. The recipes call the same functions on CPU and CUDA."""

import ctypes
import gc
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import psutil
import torch

_STATUS = Path("/proc/self/status")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_FILE_PAGES = 0.08
"""Share of a memory limit that may still be taken by pages of files: kernels of libraries come in at their first use."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED and its like
    "could not create a primitive",
)


def choose() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def memory_bytes(device: torch.device, limit: int | None) -> int:
    """Bytes a task may use: what the device has for this process, or the least of the machine's, the cgroup's and `limit`.

    The context of each process that uses a GPU takes some hundred megabytes that no tensor can have, so what counts is
    what is free and what this process holds already.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    texts = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
    cgroup = [int(text) for text in texts if text.isdigit()]
    return min([psutil.virtual_memory().total, *cgroup, *([limit] if limit else [])])


def release_freed() -> None:
    """Return freed memory to the kernel and the device, so that what counts as used is what is really held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc alone has it
        libc.malloc_trim(0)


@contextmanager
def tight_heap() -> Iterator[None]:
    """Blocks freed in here go back to the kernel at once; afterwards the C heap keeps them, as training wants it.

    glibc raises its threshold for mapping a block of its own with every large block that is freed. While a base is
    loaded and quantised, whether the short-lived 32-bit weights then pile up in the heap is chance: the loading peak of
    MPNet at 4 bits was 1.43 GB or 1.85 GB from one process to the next. A fixed threshold gives 1.43 GB every time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc alone has it
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 18)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # where glibc's own rule would end
        mallopt(_M_TRIM_THRESHOLD, 1 << 26)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, the CPU allocator or Python ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


@contextmanager
def memory_limit(device: torch.device, limit: int | None) -> Iterator[None]:
    """Let the process's private memory grow no further than to `limit` resident bytes in here. On a GPU: no effect.

    A refused allocation is an error that training can answer with a smaller micro-batch; without this the kernel
    (or the site's watch) ends the process. The limit is on mapped memory (RLIMIT_DATA), of which the resident set
    is a part: what is mapped but untouched now is allowed on top, and pages of files (weights, libraries) have no
    limit of this kind, so a part of the room is left to them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if limit is not None and device.type == "cpu":
        release_freed()  # what an earlier task of this process left must not count as used
        room = max(0, int(limit * (1 - _FILE_PAGES)) - _status_bytes("VmRSS"))
        wanted = _status_bytes("VmData") + room
        resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, the same bytes every time (given the same number of threads); CUDA kernels are left as they are."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(was or device.type == "cpu")
    # Uninitialised memory would be filled with NaN: a safety net that costs time, for reads we do not make.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's stubs lack it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)


@lru_cache(maxsize=4)
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of this device's best square matrix product of this type: what MFU is a share of.

    Measured, not looked up: 2·n³ FLOP in the best of five runs, on the CPU with the threads this process has.
    """
    n = 8192 if device.type == "cuda" else 1024
    # Numbers of no pattern, since a GPU multiplies equal ones faster; of their own generator, since training draws from the usual one.
    a = torch.randn(n, n, device=device, dtype=dtype, generator=torch.Generator(device).manual_seed(0))
    best = min(_seconds_of_product(a) for _ in range(5))
    return 2.0 * n**3 / best


def _seconds_of_product(a: torch.Tensor) -> float:
    synchronise(a.device)
    start = time.perf_counter()
    torch.mm(a, a)
    synchronise(a.device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    msg = f"/proc/self/status has no {field}: this needs Linux with /proc mounted"
    raise OSError(msg)
