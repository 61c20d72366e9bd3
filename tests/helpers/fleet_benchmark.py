"""Runs the programs of benchmarks/fleet in a process of their own: its modules have names that others have, too."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
FLEET: Final = ROOT / "benchmarks" / "fleet"


def output_of(*command: str) -> str:
    """What Python prints when it runs this command."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True, env=environment, cwd=ROOT).stdout
