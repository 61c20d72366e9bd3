"""The device that a task runs on: its memory, memory limit and peak FLOP/s. Recipes call the same functions for CPU and CUDA."""

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
PAGE_BYTES = 4096
_FILE_PAGES_SHARE = 0.08
"""Share of a memory limit that is reserved for file pages: libraries load kernels when they are first used."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED and similar
    "could not create a primitive",
)


def choose() -> torch.device:
    """The first CUDA device if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def usable_processes(asked: int) -> int:
    """Of so many processes with a device each, those for which there is one. On a CPU they share it: as many as are asked for."""
    return min(asked, torch.cuda.device_count()) if torch.cuda.is_available() else asked


def memory_bytes(device: torch.device, limit: int | None) -> int:
    """Bytes that a task may use: device memory on a GPU; the least of the machine's memory, the cgroup's limit and `limit` on a CPU.

    On a GPU, each process has a context of some hundred megabytes that tensors cannot use. So the memory is computed as
    what is free plus what this process has reserved already.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return min([psutil.virtual_memory().total, *_cgroup_limits(), *([limit] if limit else [])])


def memory_bytes_beyond(device: torch.device, limit: int | None) -> int:
    """`memory_bytes` of a task whose limit is larger than this: a cgroup's limit counts only where it is smaller."""
    if device.type == "cuda" or limit is None:
        return memory_bytes(device, None)
    smaller = [one for one in _cgroup_limits() if one <= limit - PAGE_BYTES]  # the kernel rounds a limit down to whole pages
    return min([psutil.virtual_memory().total, *smaller])


def _cgroup_limits() -> list[int]:
    """The memory limits of this process's cgroup, in bytes; none where there is no limit."""
    texts = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
    return [int(text) for text in texts if text.isdigit()]


def trim_memory() -> None:
    """Return freed memory to the kernel and the device, so that the measured memory is what is really in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # only in glibc
        libc.malloc_trim(0)


@contextmanager
def tune_malloc_for_loading() -> Iterator[None]:
    """Tune malloc while a base is loaded or compared: freed blocks are returned to the kernel at once. Afterwards the heap keeps them.

    By default glibc raises M_MMAP_THRESHOLD, the size from which a block gets its own mapping, whenever a large block is
    freed. Then it depends on chance whether the short-lived 32-bit weights accumulate in the heap while a base is loaded
    and quantised: the peak memory of loading MPNet at 4 bits was 1.43 GB in one process and 1.85 GB in the next. With a
    fixed threshold it is 1.43 GB every time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # only in glibc
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, 1 << 18)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)  # the largest value that glibc's dynamic threshold reaches
        mallopt(_M_TRIM_THRESHOLD, 1 << 26)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the device, the CPU allocator or Python ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)


@contextmanager
def memory_limit(device: torch.device, limit: int | None) -> Iterator[None]:
    """Limit the private memory of this process to `limit` resident bytes in this context. It has no effect on a GPU.

    After a failed allocation, training can continue with a smaller micro-batch; without this limit the kernel (or the
    memory limit of the local backend) kills the process. The limit is set on mapped memory (RLIMIT_DATA), which includes
    memory that is mapped but not resident: what is not resident now is added to the limit. File pages (weights,
    libraries) do not count towards RLIMIT_DATA, so a share of the limit is reserved for them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if limit is not None and device.type == "cpu":
        trim_memory()  # what an earlier task of this process freed must not count as used
        available = max(0, int(limit * (1 - _FILE_PAGES_SHARE)) - _status_bytes("VmRSS"))
        data_limit = _status_bytes("VmData") + available
        resource.setrlimit(resource.RLIMIT_DATA, (data_limit if hard == resource.RLIM_INFINITY else min(data_limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Make results on the CPU reproducible bit for bit (with the same number of threads). CUDA kernels are not changed."""
    enabled_before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled_before or device.type == "cpu")
    # By default torch then fills uninitialised memory with NaN. That costs time, and nothing here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's stubs lack it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled_before)


@lru_cache(maxsize=4)
def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices by instructions that are made for it, or as fast: of CPUs those with AVX-512."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - PyTorch has no public name for it


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Peak FLOP/s of square matrix products of this type on this device: the denominator of MFU.

    It is measured: 2·n³ FLOP, the fastest of five runs, on the CPU with as many threads as this process has.
    """
    n = 8192 if device.type == "cuda" else 1024
    # Random values, since a GPU multiplies equal values faster; from a separate generator, since training uses the default one.
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
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    msg = f"/proc/self/status has no {field}: the trainer needs Linux with /proc mounted"
    raise OSError(msg)
