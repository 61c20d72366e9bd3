"""How an aggregation uses the processor: its cores, and OpenBLAS's kernels for it.

On a processor that is younger than itself, OpenBLAS falls back to kernels for AVX2, whatever the flags say.
"""

import os
from pathlib import Path
from typing import Final

_SKYLAKE_X: Final = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
"""What the kernels of that name need; every later processor with AVX-512 has it."""
_MOST_THREADS: Final = 4
"""Each holds one weight of all sites in memory."""


def threads() -> int:
    """Weights to merge at a time."""
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))


def environment(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What to start an aggregation with, since OpenBLAS reads it when it is loaded. Empty where its own choice is as good.

    On a Zen 5 with OpenBLAS 0.3.31, `Exact` at 16 × rank 16 × d 4096 is a quarter faster for it.
    """
    flags = next((line.split() for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), []) if cpuinfo.exists() else []
    return {"OPENBLAS_CORETYPE": "SkylakeX"} if set(flags) >= _SKYLAKE_X else {}
