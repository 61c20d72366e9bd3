"""Samples the operator's memory and processor time from /proc, and the machine's processor time."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import psutil

_TICKS = os.sysconf("SC_CLK_TCK")
_KIB_PER_MIB = 1024


@dataclass(frozen=True)
class Sample:
    """One sample."""

    at: float
    """Unix seconds."""
    rss: float
    pss: float
    """MiB of the operator's process."""
    workers: float
    """MiB (PSS) of its aggregations."""
    cpu: float
    """Processor seconds of the operator's process."""
    workers_cpu: float
    """Processor seconds of the aggregations that have ended."""
    busy: float
    """Busy seconds of all processors together, for all processes."""


def sample(pid: int) -> Sample:
    """Take a sample of the operator."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, of_user, of_system = (int(one) / _TICKS for one in fields[11:15])
    rss, pss = _memory(pid)
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    return Sample(time.time(), rss, pss, _workers(pid), user + system, of_user + of_system, busy)


def programs(pids: Mapping[str, int]) -> dict[str, float]:
    """Processor seconds of each of these processes."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: taken.user + taken.system for name, taken in times.items()}


def _memory(pid: int) -> tuple[float, float]:
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(rows["Rss"].split()[0]) / _KIB_PER_MIB, int(rows["Pss"].split()[0]) / _KIB_PER_MIB


def _workers(pid: int) -> float:
    total = 0.0
    for child in psutil.Process(pid).children():
        try:
            total += _memory(child.pid)[1]
        except (OSError, KeyError):
            continue  # it ended meanwhile
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
