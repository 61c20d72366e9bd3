"""Executes the commands on pages as they are written, and knows what a page says of how they are tested.

A line before each block says it: `<!-- run by: FILE -->`, a test that takes the block from the page (or `.ci/run`, for targets of make), or
`<!-- not run: REASON -->`, or `<!-- not run as it stands: REASON -->` where tests run the same commands in another form.
"""

import os
import re
import subprocess
from pathlib import Path


def blocks(text: str) -> list[str]:
    """The shell code blocks in the text of a README."""
    code: list[str] = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return code


def notes(text: str) -> list[tuple[str, str]]:
    """Each shell code block with the comment before it; "" without one."""
    found: list[tuple[str, str]] = re.findall(r"(?:^<!-- ([^\n]*) -->\n)?^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return found


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
