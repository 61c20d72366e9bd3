"""buildah with its own store, at low priority."""

import shutil
from pathlib import Path

from testcluster.layout import Layout
from testcluster.shell import run

_KNOWN_BLOBS = Path("/var/lib/containers/cache/blob-info-cache-v1.boltdb")
"""buildah's cache of the registry's blobs, at the only path it reads: without it, every layer is compressed and pushed again."""


def buildah(layout: Layout, *arguments: str) -> str:
    """Run buildah; return its output."""
    store, runtime = layout.cache / "containers" / "store", layout.cache / "containers" / "run"
    where = ("--root", str(store), "--runroot", str(runtime), "--storage-driver", "overlay")
    return run("nice", "-n", "19", "buildah", *where, *arguments)


def is_built(layout: Layout, image: str) -> bool:
    """Whether the image is in buildah's store."""
    return image in buildah(layout, "images", "--format", "{{.Name}}:{{.Tag}}").split()


def push(layout: Layout, image: str) -> None:
    """Push the layers of the image that the registry lacks."""
    kept = layout.cache / "containers" / "known-blobs"
    if kept.exists() and not _KNOWN_BLOBS.exists():
        _KNOWN_BLOBS.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(kept, _KNOWN_BLOBS)
    buildah(layout, "push", "--quiet", "--tls-verify=false", "--compression-format", "zstd", "--compression-level", "3", image)
    if _KNOWN_BLOBS.exists():
        shutil.copy2(_KNOWN_BLOBS, kept)
