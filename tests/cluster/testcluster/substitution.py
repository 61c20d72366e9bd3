"""Puts another image in an image's place on one node, as whoever owns the node can."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testcluster import nodes
from testcluster.buildah import buildah, push
from testcluster.layout import REGISTRY, Layout, Node
from testcluster.shell import locked

_NAME = "substituted"


@contextmanager
def substituted(layout: Layout, node: Node, image: str, files: Path) -> Iterator[None]:
    """New pods of `image` on this node have these files in /app besides; at the end, the image is the registry's again."""
    other = f"{REGISTRY}/{_NAME}:latest"
    with locked(layout.cache / "images.lock"):
        _build(layout, image, files, other)
        push(layout, other)
        nodes.replace_image(layout, node, image, by=other)
    try:
        yield
    finally:
        with locked(layout.cache / "images.lock"):
            nodes.remove_image_from(layout, node, other)
            nodes.remove_image_from(layout, node, image)
            buildah(layout, "rmi", other)
            # Its layers are those of the original but for one, which goes when the registry's garbage is collected the next time.
            shutil.rmtree(layout.registry / "docker" / "registry" / "v2" / "repositories" / _NAME)


def _build(layout: Layout, image: str, files: Path, tag: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(files, Path(folder) / "files", ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "Dockerfile").write_text(f"FROM {image}\nCOPY --chmod=755 files/ /app/\n")
        buildah(layout, "bud", "--isolation", "chroot", "--format", "oci", "--quiet", "--tls-verify=false", "--tag", tag, folder)
