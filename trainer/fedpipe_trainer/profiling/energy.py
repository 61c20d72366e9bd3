"""The energy that the device has used: NVML's counter on an NVIDIA GPU, RAPL's counters of the processor packages otherwise.

Both count continuously, so the energy of some work is the difference of two readings. RAPL counts the whole package, also
what other processes do there; its files are readable by root only since Linux 5.10, and absent in most virtual machines.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from fedpipe_trainer.contract import EnergySource

POWERCAP: Final = Path("/sys/class/powercap")
_NVML: Final = "libnvidia-ml.so.1"


class EnergyMeter:
    """Joules since the last reading, from counters that wrap around."""

    def __init__(self, read: Callable[[], Mapping[str, float]], ranges: Mapping[str, float], source: EnergySource | None = None) -> None:
        """Start counting.

        Args:
            read: the counters in joules, by name.
            ranges: by name, the joules after which a counter begins again at 0; a counter without an entry never does.
            source: whose counters they are; None: there are none.
        """
        self.source = source
        self._read, self._ranges = read, ranges
        self._last = self._try_to_read()

    def joules(self) -> float | None:
        """Joules used since the last call; None if the platform has no counter or it did not advance."""
        now, last = self._try_to_read(), self._last
        self._last = now
        used = sum(self._difference(name, last[name], value) for name, value in now.items() if name in last)
        return used if used > 0 else None

    def _try_to_read(self) -> Mapping[str, float]:
        try:
            return self._read()
        except (OSError, ValueError):
            return {}

    def _difference(self, name: str, last: float, now: float) -> float:
        return now - last if now >= last else now - last + self._ranges.get(name, 0.0)


def meter(used_device: torch.device, processes: int = 1) -> EnergyMeter:
    """The meter of this device, or of the first ones where each of several processes has its own; without any counter it reads None."""
    if used_device.type != "cuda":
        return rapl_meter(POWERCAP)
    return nvml_meter([used_device] if processes == 1 else [torch.device("cuda", number) for number in range(processes)])


def rapl_meter(powercap: Path) -> EnergyMeter:
    """The sum over the processor packages below this folder.

    Other zones are parts of a package (core, uncore) or contain the packages (psys): counting them would count energy twice.
    """
    zones = [zone for zone in sorted(powercap.glob("*")) if _text(zone / "name").startswith("package")]
    ranges = {zone.name: int(_text(zone / "max_energy_range_uj") or 0) / 1e6 for zone in zones}
    return EnergyMeter(lambda: {zone.name: int((zone / "energy_uj").read_text()) / 1e6 for zone in zones}, ranges, EnergySource.RAPL)


def nvml_meter(devices: Sequence[torch.device]) -> EnergyMeter:
    """The sum over the counters of NVIDIA GPUs (Volta or later), read through the driver's own library."""
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return EnergyMeter(dict, {})
    handles = [_nvml_handle(nvml, f"GPU-{torch.cuda.get_device_properties(one).uuid}") for one in devices]
    return EnergyMeter(
        lambda: {name: joules for at, handle in enumerate(handles) for name, joules in _nvml_joules(nvml, handle, at).items()},
        {},
        EnergySource.NVML,
    )


def _nvml_handle(nvml: Any, uuid: str) -> ctypes.c_void_p | None:  # noqa: ANN401 - a library has no type
    handle = ctypes.c_void_p()
    failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle))
    return None if failed else handle


def _nvml_joules(nvml: Any, handle: ctypes.c_void_p | None, number: int) -> dict[str, float]:  # noqa: ANN401 - a library has no type
    millijoules = ctypes.c_ulonglong()
    if handle is None or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return {}
    return {f"gpu {number}": millijoules.value / 1e3}


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
