"""Executes the commands in READMEs as they are written."""

import os
import re
import subprocess
from pathlib import Path


def blocks(text: str) -> list[str]:
    """The shell code blocks in the text of a README."""
    code: list[str] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return code


def follow(commands: str, *, folder: Path, first_in_path: Path) -> None:
    """Run the commands in this folder; each of them must succeed."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": f"{first_in_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
