"""Which kernels an aggregation is started with."""

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
    ids=["AVX-512", "a part of AVX-512", "another architecture"],
)
def test_only_a_processor_with_all_of_avx512_is_told_of(tmp_path: Path, text: str, expected: dict[str, str]) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + text)

    assert openblas.environment(tmp_path / "cpuinfo") == expected
    assert openblas.environment(tmp_path / "missing") == {}


def test_openblas_knows_the_kernels_by_this_name() -> None:
    told = openblas.environment()
    ask = (
        "import numpy, threadpoolctl; print([one['architecture'] for one in threadpoolctl.threadpool_info() if one['user_api'] == 'blas'])"
    )

    taken = subprocess.run([sys.executable, "-c", ask], env=os.environ | told, capture_output=True, text=True, check=True).stdout

    assert not told or "SkylakeX" in taken
