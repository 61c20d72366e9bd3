"""What the operator's process takes, from /proc: memory, processor time; and what the machine does meanwhile."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import psutil

_TICKS = os.sysconf("SC_CLK_TCK")
_KIB_A_MIB = 1024


@dataclass(frozen=True)
class Sample:
    """One look."""

    at: float
    """Unix seconds."""
    rss: float
    pss: float
    """MiB of the operator's process."""
    workers: float
    """MiB (PSS) of its aggregations."""
    cpu: float
    """Seconds of the operator's process until now."""
    workers_cpu: float
    """Seconds of the aggregations that have ended."""
    busy: float
    """Seconds that all processors together were at work until now, whoever used them."""


def sample(pid: int) -> Sample:
    """One look at the operator."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, of_user, of_system = (int(one) / _TICKS for one in fields[11:15])
    rss, pss = _memory(pid)
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    return Sample(time.time(), rss, pss, _workers(pid), user + system, of_user + of_system, busy)


def programs(pids: Mapping[str, int]) -> dict[str, float]:
    """Processor seconds that each of these processes has taken until now."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: taken.user + taken.system for name, taken in times.items()}


def _memory(pid: int) -> tuple[float, float]:
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(rows["Rss"].split()[0]) / _KIB_A_MIB, int(rows["Pss"].split()[0]) / _KIB_A_MIB


def _workers(pid: int) -> float:
    total = 0.0
    for child in psutil.Process(pid).children():
        try:
            total += _memory(child.pid)[1]
        except (OSError, KeyError):
            continue  # it ended while we looked
    return total


def quarter(samples: list[Sample], number: int) -> list[Sample]:
    """The samples of a quarter of the time, from 1."""
    begin, end = samples[0].at, samples[-1].at
    span = (end - begin) / 4
    return [one for one in samples if begin + span * (number - 1) <= one.at <= begin + span * number]


def growth(samples: list[Sample]) -> tuple[float, float]:
    """Mean PSS of the second and of the last quarter."""
    second, last = (fmean(one.pss for one in quarter(samples, number)) for number in (2, 4))
    return second, last
