"""The OpenBLAS kernels that an aggregation process is started with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedpipe_operator.aggregation import openblas

AVX512 = "flags\t\t: fpu avx2 avx512f avx512dq avx512cd avx512bw avx512vl\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(AVX512, {"OPENBLAS_CORETYPE": "SkylakeX"}), (AVX512.replace("avx512vl", ""), {}), ("Features\t: asimd\n", {})],
    ids=["AVX-512", "only part of AVX-512", "another architecture"],
)
def test_the_environment_is_set_only_for_a_processor_with_all_of_avx512(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + text)

    assert openblas.environment(tmp_path / "cpuinfo") == expected
    assert openblas.environment(tmp_path / "missing") == {}


def test_openblas_accepts_the_name_of_the_kernels() -> None:
    environment = openblas.environment()
    script = (
        "import numpy, threadpoolctl; print([lib['architecture'] for lib in threadpoolctl.threadpool_info() if lib['user_api'] == 'blas'])"
    )

    architectures = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, check=True
    ).stdout

    assert not environment or "SkylakeX" in architectures
