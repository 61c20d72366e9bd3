"""The nodes, where the operator may see them; imported only then."""

from collections.abc import Mapping
from typing import Any

import kopf

from fedpipe_operator.capacity import Node
from fedpipe_operator.cluster import kube_node
from fedpipe_operator.control import Control

Body = Mapping[str, Any]


@kopf.index("", "v1", "nodes")
def nodes(body: Body, **_: Any) -> Mapping[None, Node]:
    """Every node."""
    return {None: kube_node(body)}


@kopf.on.event("", "v1", "nodes")
def node_seen(memo: kopf.Memo, **_: Any) -> None:
    """A node was listed, created, changed or deleted: what pools can carry may be another now."""
    control: Control = memo.control
    control.wake_sites()
