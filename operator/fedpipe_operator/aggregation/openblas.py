"""The environment variables with which OpenBLAS selects the fastest kernels for this processor.

On a processor that is newer than itself, OpenBLAS falls back to kernels for AVX2, whatever the processor's flags are.
"""

from pathlib import Path
from typing import Final

_SKYLAKE_X_FLAGS: Final = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
"""What OpenBLAS's SkylakeX kernels need; every later processor with AVX-512 has them."""


def environment(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The environment to start an aggregation process with: OpenBLAS reads it when it is loaded. Empty where its default is as good.

    On a Zen 5 with OpenBLAS 0.3.31, it makes `Exact` at 16 × rank 16 × d 4096 a quarter faster.
    """
    flags = next((line.split() for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), []) if cpuinfo.exists() else []
    return {"OPENBLAS_CORETYPE": "SkylakeX"} if set(flags) >= _SKYLAKE_X_FLAGS else {}
