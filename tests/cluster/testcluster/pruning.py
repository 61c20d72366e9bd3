"""Removes images of sources that have changed since: every change is an image of its own, and every lock file 5 GB in four places."""

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from testcluster import nodes
from testcluster.buildah import buildah
from testcluster.layout import NODES, REGISTRY, Layout
from testcluster.programs import binary
from testcluster.shell import run

_KEPT = 2
"""Images of each product: what two working trees need in turn."""


def prune(layout: Layout, products: Sequence[str], needed: Sequence[str]) -> list[str]:
    """Remove the products' older images from the builder's store, the registry and the nodes; return their names.

    Call it with the images' lock held and the registry and the nodes' containerd running.
    """
    listed = json.loads(buildah(layout, "images", "--json"))
    removed = outdated(listed, products, needed)
    kept = {name for image in listed for name in image["names"] or ()} - set(removed)
    if removed:
        buildah(layout, "rmi", *removed)
    for node in NODES:
        for image in outdated_on_a_node(nodes.images(layout, node), products, kept):
            nodes.remove_image_from(layout, node, image)
    _prune_registry(layout, products, kept)
    return removed


def outdated(listed: Sequence[dict[str, Any]], products: Sequence[str], needed: Sequence[str]) -> list[str]:
    """The products' images that are neither needed nor among the newest, of what `buildah images --json` lists."""
    found = [(image["created"], name) for image in listed for name in image["names"] or ()]
    newest_first = [name for _, name in sorted(found, reverse=True) if name not in needed]
    return [name for product in products for name in [one for one in newest_first if _product_of(one, products) == product][_KEPT - 1 :]]


def outdated_on_a_node(digests: Mapping[str, str], products: Sequence[str], kept: set[str]) -> list[str]:
    """All names of the products' images that are not kept, of a node's digests by name."""
    ours = {digest for name, digest in digests.items() if _product_of(name, products)}
    ours -= {digest for name, digest in digests.items() if name in kept}
    return [name for name, digest in digests.items() if digest in ours]


def _product_of(image: str, products: Sequence[str]) -> str | None:
    name = image.replace("@", ":").partition("/fedpipe-")[2].partition(":")[0]
    return name if name in products and image.startswith(REGISTRY) else None


def _prune_registry(layout: Layout, products: Sequence[str], kept: set[str]) -> None:
    """Untag what is not kept, and delete what no tag leads to. The registry holds no list of blobs in its memory, so it may go on."""
    untagged = False
    for product in products:
        repository = layout.registry / "docker" / "registry" / "v2" / "repositories" / f"fedpipe-{product}"
        for tag in (repository / "_manifests" / "tags").glob("*"):
            if f"{REGISTRY}/fedpipe-{product}:{tag.name}" not in kept:
                shutil.rmtree(tag)
                untagged = True
    if untagged:
        run(binary(layout, "registry"), "garbage-collect", "--delete-untagged", layout.run / "registry.json")
