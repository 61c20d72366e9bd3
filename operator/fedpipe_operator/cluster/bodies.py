"""Objects of our kinds as the API gives them, read into values; what is wrong with them in sentences. Pure."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from fedpipe_operator.api import EdgeSite, FederatedFineTune, FineTuneStatus
from fedpipe_operator.api.edgesite import EdgeSiteStatus
from fedpipe_operator.api.parse import problems_of
from fedpipe_trainer.contract import Wire

Body = Mapping[str, Any]
Kind = TypeVar("Kind", bound=Wire)
Status = TypeVar("Status", bound=Wire)

_STATUS_OF: Final[dict[type[Wire], type[Wire]]] = {EdgeSite: EdgeSiteStatus, FederatedFineTune: FineTuneStatus}


def read_body(body: Body, kind: type[Kind]) -> Kind | list[str]:
    """The object, or what is wrong with its spec. A status that an older version wrote is let go, never held against the spec."""
    plain = {name: body[name] for name in ("apiVersion", "kind", "metadata", "spec") if name in body}
    value, problems = problems_of(plain, kind)
    if value is None or problems:
        return problems
    return value.model_copy(update={"status": read_status(body, _STATUS_OF[kind])})


def read_status(body: Body, kind: type[Status]) -> Status:
    """The object's status; an empty one if it cannot be read."""
    try:
        return kind.model_validate(body.get("status") or {})
    except ValidationError:
        return kind()


class NamespacedName(NamedTuple):
    """Where an object is."""

    namespace: str
    name: str


def namespaced_name(body: Body) -> NamespacedName:
    """Where this object is."""
    return NamespacedName(body["metadata"]["namespace"], body["metadata"]["name"])


def slim(body: Body) -> dict[str, Any]:
    """The object without what we never read of it."""
    metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
    return {name: value for name, value in body.items() if name != "metadata"} | {"metadata": metadata}


def version_of(body: Body) -> int:
    """The object's resource version, as the number that it is: a larger one is newer."""
    text = str(body["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdecimal() else 0
