"""kubectl with our cluster's administrator."""

import json
from typing import Any

from testcluster.layout import Layout
from testcluster.programs import binary
from testcluster.shell import run, without_proxies


def kubectl(layout: Layout, *arguments: str, given: str | None = None) -> str:
    """Run kubectl; return its output."""
    ours = (f"--kubeconfig={layout.kubeconfig}", f"--cache-dir={layout.run / 'kubectl-cache'}")
    return run(binary(layout, "kubectl"), *ours, *arguments, given=given, env=without_proxies())


def apply(layout: Layout, *objects: dict[str, Any]) -> None:
    """Create or update these objects."""
    kubectl(layout, "apply", "--server-side", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
