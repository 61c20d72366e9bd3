"""The nodes, where the operator may see them; imported only then."""

from collections.abc import Mapping
from typing import Any

import kopf

from fedpipe_operator.cluster import kube_node
from fedpipe_operator.handlers.controller import Controller
from fedpipe_operator.sites.capacity import Node

Body = Mapping[str, Any]


@kopf.index("", "v1", "nodes")
async def nodes(body: Body, **_: Any) -> Mapping[None, Node]:
    """Every node."""
    return {None: kube_node(body)}


@kopf.on.event("", "v1", "nodes")
async def node_seen(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002 -- kopf's word
    """A node was listed, created, changed or deleted: what pools can carry may be another now."""
    controller: Controller = memo.controller
    if type == "DELETED":
        controller.forget_node(kube_node(body))
    else:
        controller.see_node(kube_node(body))
