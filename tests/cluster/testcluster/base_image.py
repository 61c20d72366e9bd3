"""The base of the product's images, for machines without an image registry: a small Debian with Python, built by debootstrap."""

import hashlib
import os
import shutil
import time
from pathlib import Path

from testcluster import builder_settings
from testcluster.buildah import buildah, is_built
from testcluster.layout import Layout
from testcluster.shell import run
from testcluster.versions import DEBIAN_SUITE

_INCLUDED = ("python3", "python3-venv", "ca-certificates")
_LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "etc/apt/sources.list",
)
"""Paths that an image does not need; the last one describes the machine's package sources."""

_RECIPE = hashlib.sha256(repr((DEBIAN_SUITE, _INCLUDED, _LEFT_OUT)).encode()).hexdigest()[:12]
BASE = f"localhost/fedpipe-base:{DEBIAN_SUITE}-{_RECIPE}"


def build_base(layout: Layout) -> None:
    """Build the base image unless it exists."""
    if is_built(layout, BASE):
        return
    start = time.monotonic()
    container = buildah(layout, "from", "scratch").strip()
    root = Path(buildah(layout, "mount", container).strip())
    try:
        _debootstrap(root)
        for name in _LEFT_OUT:
            _empty(root / name)
        buildah(layout, "config", "--env", "LANG=C.UTF-8", "--cmd", "python3", container)
        buildah(layout, "commit", "--quiet", "--format", "oci", container, BASE)
    finally:
        buildah(layout, "umount", container)
        buildah(layout, "rm", container)
    print(f"{BASE} built in {time.monotonic() - start:.0f} s", flush=True)


def _debootstrap(root: Path) -> None:
    env = os.environ | builder_settings.apt_environment()
    command = ("debootstrap", "--variant=minbase", f"--include={','.join(_INCLUDED)}", DEBIAN_SUITE, str(root))
    run("nice", "-n", "19", *command, *builder_settings.debian_mirror(), env=env)


def _empty(path: Path) -> None:
    if path.is_dir():
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    else:
        path.unlink(missing_ok=True)
