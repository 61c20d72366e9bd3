"""YAML text to the two kinds, with every problem in words: for `fedpipe validate`, and for all that reads a user's file.

Pure: it reads no file (the command line does). A document is judged as the API server would judge it: strict types,
camelCase names only, unknown fields refused, an empty field as if it were left out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar, cast

from pydantic import ValidationError

from fedpipe_operator.api.checks import problems_within
from fedpipe_operator.api.documents import Document, Problem, dotted, read_yaml
from fedpipe_operator.api.edgesite import EdgeSite
from fedpipe_operator.api.finetune import FederatedFineTune
from fedpipe_operator.api.meta import API_VERSION, ApiModel
from fedpipe_operator.api.sentences import sentence

Kind = EdgeSite | FederatedFineTune
KindT = TypeVar("KindT", bound=ApiModel)

_KINDS: Final[dict[str, type[Kind]]] = {"EdgeSite": EdgeSite, "FederatedFineTune": FederatedFineTune}

_METADATA: Final = frozenset(
    {"name", "generateName", "namespace", "labels", "annotations", "uid", "generation", "resourceVersion", "creationTimestamp"}
    | {"deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences", "managedFields", "selfLink"}
)
"""What Kubernetes knows in `metadata`. The models pass over what they do not read, so a typing error is caught here."""


@dataclass(frozen=True)
class Found:
    """An object, and the document it was read from."""

    value: Kind
    document: Document


@dataclass(frozen=True)
class Reading:
    """What a text held: the objects that are right, and everything that is wrong."""

    found: tuple[Found, ...]
    problems: tuple[Problem, ...]


def read_documents(text: str, where: str) -> Reading:
    """Read the objects of a YAML text of one or more documents; `where` names it in the problems."""
    documents, problems = read_yaml(text, where)
    found = []
    for document in documents:
        value, wrong = _read(document)
        problems.extend(wrong)
        if value is not None:
            found.append(Found(value, document))
    return Reading(tuple(found), tuple(problems))


def validate_strictly(value: object, kind: type[KindT]) -> KindT:
    """A plain value as an object of `kind`, judged as the API server would.

    Raises:
        pydantic.ValidationError: the value does not fit.
    """
    return kind.model_validate_json(json.dumps(_without_nulls(value), default=str), strict=True, by_alias=True, by_name=False)


def problems_of(value: object, kind: type[KindT]) -> tuple[KindT | None, list[str]]:
    """A plain value as an object of `kind`, judged like a document; and what is wrong with it, each problem with its path."""
    try:
        found = validate_strictly(value, kind)
    except ValidationError as error:
        told = (sentence(one, _schema(kind)) for one in error.errors(include_url=False))
        return None, [f"{dotted(path)}: {message}" for path, message in told]
    return found, [f"{dotted(path)}: {message}" for path, message in problems_within(cast("Kind", found))]


def _read(document: Document) -> tuple[Kind | None, list[Problem]]:
    strange = _strange(document)
    if strange is not None:
        return None, [strange]
    kind = _KINDS[document.value["kind"]]
    problems = list(_unknown_metadata(document))
    try:
        value = validate_strictly(document.value, kind)
    except ValidationError as error:
        told = (sentence(one, _schema(kind)) for one in error.errors(include_url=False))
        return None, [*problems, *(document.problem(path, message) for path, message in told)]
    problems.extend(document.problem(path, message) for path, message in problems_within(value))
    return (None if problems else value), problems


@cache
def _schema(kind: type[ApiModel]) -> dict[str, Any]:
    return kind.model_json_schema(by_alias=True)


def _strange(document: Document) -> Problem | None:
    """Why the document is none of ours, if it is not: then there is nothing to hold its fields against."""
    value = document.value
    if not isinstance(value, dict):
        return document.problem((), f"this is no object: write apiVersion: {API_VERSION}, kind, metadata and spec")
    if value.get("kind") not in _KINDS:
        kinds = " or ".join(_KINDS)
        return document.problem(
            ("kind",), f"{value.get('kind')!r} is no kind of FedPipe: write {kinds}, or move the document to another file"
        )
    if value.get("apiVersion") != API_VERSION:
        return document.problem(("apiVersion",), f"{value.get('apiVersion')!r} is not known: write {API_VERSION}")
    return None


def _unknown_metadata(document: Document) -> Iterator[Problem]:
    metadata = document.value.get("metadata")
    for name in metadata if isinstance(metadata, dict) else ():
        if name not in _METADATA:
            yield document.problem(("metadata", name), "there is no such field: write name, namespace, labels or annotations")


def _without_nulls(value: object) -> object:
    """The API server drops a field that is written without a value, before it fills in the defaults."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
