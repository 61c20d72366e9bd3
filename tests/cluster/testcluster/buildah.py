"""buildah with a store of its own, gentle to whatever else runs on the machine."""

from testcluster.layout import Layout
from testcluster.shell import run


def buildah(layout: Layout, *words: str) -> str:
    """What buildah prints."""
    store, runtime = layout.cache / "containers" / "store", layout.cache / "containers" / "run"
    where = ("--root", str(store), "--runroot", str(runtime), "--storage-driver", "overlay")
    return run("nice", "-n", "19", "buildah", *where, *words)
