"""The tables of benchmarks/edge/README.md are what its stored results say."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
BENCHMARK: Final = ROOT / "benchmarks" / "edge"


def test_the_readme_has_the_tables_of_what_is_stored() -> None:
    command = [sys.executable, str(BENCHMARK), "--table"]

    tables = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT).stdout

    assert tables.count("\n") > 10
    assert tables in (BENCHMARK / "README.md").read_text(encoding="utf-8")
