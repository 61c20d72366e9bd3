"""The device as a profile sees it: the bandwidth of its memory, and the identity of the machine that a profile is valid for."""

import platform
import time
from pathlib import Path
from typing import Final

import torch

from fedpipe_trainer import device

_COPIED_BYTES: Final = 128 << 20
"""Larger than the caches of common processors, small beside any memory limit that a model fits in."""
_COPIES: Final = 5
_CPU_INFO: Final = Path("/proc/cpuinfo")


def memory_bytes_per_second(used_device: torch.device) -> float:
    """Bandwidth of the device's memory: bytes read and bytes written by the fastest of five copies of 128 MiB, per second.

    Micro-benchmark of arXiv 2310.03150: training on edge devices is often bound by memory bandwidth.
    """
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=used_device)
    target = torch.empty_like(source)
    return 2.0 * _COPIED_BYTES / min(_seconds_of_copy(source, target) for _ in range(_COPIES))


def machine(used_device: torch.device) -> dict[str, str | int]:
    """What a measured speed depends on: the name of the GPU and its memory, or the processor and the number of threads."""
    if used_device.type == "cuda":
        properties = torch.cuda.get_device_properties(used_device)
        return {"device": properties.name, "memory": properties.total_memory}
    return {"device": processor_name(_CPU_INFO), "threads": torch.get_num_threads(), "memory": device.memory_bytes(used_device, None)}


def processor_name(cpu_info: Path) -> str:
    """The model name of the first processor in this file; on machines whose kernel names none, the instruction set."""
    lines = cpu_info.read_text().splitlines() if cpu_info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _seconds_of_copy(source: torch.Tensor, target: torch.Tensor) -> float:
    device.synchronise(source.device)
    start = time.perf_counter()
    target.copy_(source)
    device.synchronise(source.device)
    return time.perf_counter() - start
