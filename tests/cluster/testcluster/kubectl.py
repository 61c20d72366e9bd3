"""kubectl, as the administrator of our cluster."""

import json
from typing import Any

from testcluster.layout import Layout
from testcluster.programs import binary
from testcluster.shell import run, without_proxies


def kubectl(layout: Layout, *words: str, given: str | None = None) -> str:
    """What kubectl prints."""
    ours = (f"--kubeconfig={layout.kubeconfig}", f"--cache-dir={layout.run / 'kubectl-cache'}")
    return run(binary(layout, "kubectl"), *ours, *words, given=given, env=without_proxies())


def apply(layout: Layout, *objects: dict[str, Any]) -> None:
    """Make these objects as they are written."""
    kubectl(layout, "apply", "--server-side", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
