"""The watch on nodes; imported only if the operator may watch them."""

from collections.abc import Mapping
from typing import Any

import kopf

from fedpipe_operator.cluster import kube_node
from fedpipe_operator.handlers.controller import Controller
from fedpipe_operator.sites import Node

Body = Mapping[str, Any]


@kopf.index("", "v1", "nodes")
async def nodes(body: Body, **_: Any) -> Mapping[None, Node]:
    """Every node."""
    return {None: kube_node(body)}


@kopf.on.event("", "v1", "nodes")
async def node_changed(type: str | None, body: kopf.Body, memo: kopf.Memo, **_: Any) -> None:  # noqa: A002 -- kopf's word
    """A node was listed, created, changed or deleted: pools may have another capacity now."""
    controller: Controller = memo.controller
    controller.observer.event_received("nodes")
    if type == "DELETED":
        controller.node_deleted(kube_node(body))
    else:
        controller.node_changed(kube_node(body))
