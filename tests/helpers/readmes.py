"""The commands of our READMEs, followed as they stand there."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path


def blocks(text: str) -> list[str]:
    """The blocks of commands in a README's text."""
    found: list[str] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return found


def follow(commands: str, *, folder: Path, first_in_path: Path, env: Mapping[str, str] | None = None) -> None:
    """Run the commands in this folder; each of them must succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env={**os.environ, **(env or {}), "PATH": f"{first_in_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
