"""YAML text to objects of the two kinds, with a message for every problem: for `fedpipe validate` and every command that reads files.

Pure: the command line reads the files. A document is validated as the API server would: strict types, camelCase names
only, unknown fields refused, an empty field treated as absent.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedpipe_operator.api.checks import check_object
from fedpipe_operator.api.documents import LONGEST_PROBLEM, Document, FieldProblem, Problem, format_path, read_yaml
from fedpipe_operator.api.edgesite import EdgeSite
from fedpipe_operator.api.finetune import FederatedFineTune
from fedpipe_operator.api.messages import problem_of
from fedpipe_operator.api.meta import API_VERSION, ApiModel
from fedpipe_operator.formatting import excerpt

Kind = EdgeSite | FederatedFineTune
KindT = TypeVar("KindT", bound=ApiModel)

_KINDS: Final[dict[str, type[Kind]]] = {"EdgeSite": EdgeSite, "FederatedFineTune": FederatedFineTune}

_METADATA: Final = frozenset(
    {"name", "generateName", "namespace", "labels", "annotations", "uid", "generation", "resourceVersion", "creationTimestamp"}
    | {"deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences", "managedFields", "selfLink"}
)
"""The fields of Kubernetes' `metadata`. The models ignore the fields that they do not read, so misspelled ones are detected here."""


@dataclass(frozen=True)
class ParsedObject:
    """An object, and the document that it was read from."""

    value: Kind
    document: Document


@dataclass(frozen=True)
class ParseResult:
    """The valid objects of a text, and all problems."""

    objects: tuple[ParsedObject, ...]
    problems: tuple[Problem, ...]


def read_documents(text: str, file: str) -> ParseResult:
    """Read the objects of a YAML text of one or more documents; `file` is its name in the problems."""
    documents, problems = read_yaml(text, file)
    objects = []
    for document in documents:
        value, found = _parse_document(document)
        problems.extend(found)
        if value is not None:
            objects.append(ParsedObject(value, document))
    return ParseResult(tuple(objects), tuple(problems))


def validate_strictly(value: object, kind: type[KindT]) -> KindT:
    """A plain value as an object of `kind`, validated as the API server would.

    Raises:
        pydantic.ValidationError: the value is invalid.
    """
    return kind.model_validate_json(json.dumps(_drop_nulls(value), default=str), strict=True, by_alias=True, by_name=False)


def parse_object(value: object, kind: type[KindT]) -> tuple[KindT | None, list[str]]:
    """A plain value as an object of `kind`, None if a field is invalid; and all problems, each message with its path."""
    try:
        parsed = validate_strictly(value, kind)
    except ValidationError as error:
        return None, [excerpt(f"{format_path(path)}: {message}", LONGEST_PROBLEM) for path, message in _problems_of(error, kind)]
    return parsed, [excerpt(f"{format_path(path)}: {message}", LONGEST_PROBLEM) for path, message in check_object(cast("Kind", parsed))]


def _parse_document(document: Document) -> tuple[Kind | None, list[Problem]]:
    unknown = _kind_problem(document)
    if unknown is not None:
        return None, [unknown]
    kind = _KINDS[document.value["kind"]]
    problems = list(_unknown_metadata(document))
    try:
        value = validate_strictly(document.value, kind)
    except ValidationError as error:
        return None, [*problems, *(document.problem(path, message) for path, message in _problems_of(error, kind))]
    problems.extend(document.problem(path, message) for path, message in check_object(value))
    return (None if problems else value), problems


def _problems_of(error: ValidationError, kind: type[ApiModel]) -> list[FieldProblem]:
    errors = error.errors(include_url=False)
    return [problem_of(details, _schema(kind)) for details in errors if not _counts_wrong_entries_as_missing(details)]


def _counts_wrong_entries_as_missing(details: ErrorDetails) -> bool:
    """Whether a list is too short only without its invalid entries, each of which has an error of its own."""
    return details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]


@cache
def _schema(kind: type[ApiModel]) -> dict[str, Any]:
    return kind.model_json_schema(by_alias=True)


def _kind_problem(document: Document) -> Problem | None:
    """Why the document is not an object of a known kind and version, if it is not: its fields cannot be validated then."""
    value = document.value
    if not isinstance(value, dict):
        return document.problem((), f"not a Kubernetes object: write apiVersion: {API_VERSION}, kind, metadata and spec")
    if value.get("kind") not in _KINDS:
        kinds = " or ".join(_KINDS)
        return document.problem(
            ("kind",), f"{value.get('kind')!r} is not a FedPipe kind: write {kinds}, or move the document to another file"
        )
    if value.get("apiVersion") != API_VERSION:
        return document.problem(("apiVersion",), f"unknown version {value.get('apiVersion')!r}: write {API_VERSION}")
    return None


def _unknown_metadata(document: Document) -> Iterator[Problem]:
    metadata = document.value.get("metadata")
    for name in metadata if isinstance(metadata, dict) else ():
        if name not in _METADATA:
            yield document.problem(("metadata", name), "unknown field: write name, namespace, labels or annotations")


def _drop_nulls(value: object) -> object:
    """The API server drops null fields before it applies defaults."""
    if isinstance(value, dict):
        return {key: _drop_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_drop_nulls(inner) for inner in value] if isinstance(value, list) else value
