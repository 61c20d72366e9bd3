"""The CRD's schema and the model accept and reject the same documents: tested field by field, value by value.

The CRDs' CEL rules are not evaluated here (only the real API server can), so a document that only a validator of the model rejects
counts as accepted, and `spec.task`, whose fields depend on its type, is skipped when fields are removed or added.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crds import is_accepted, openapi_schema
from pydantic import ValidationError

from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.api.documents import read_yaml
from fedpipe_operator.api.parse import validate_strictly

KINDS = {"EdgeSite": EdgeSite, "FederatedFineTune": FederatedFineTune}
DOCUMENTS = [document.value for document in read_yaml(Path(__file__).with_name("every_field.yaml").read_text(), "every_field.yaml")[0]]

Plain = Any
"""A value of YAML or JSON."""


def model_accepts(document: dict[str, Any]) -> bool:
    try:
        validate_strictly(document, KINDS[document["kind"]])
    except ValidationError as error:
        return all(one["type"] == "value_error" for one in error.errors())  # what the CRD leaves to CEL
    return True


def _places(value: Plain, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(inner, (*path, key))


def _changed(document: dict[str, Any], path: tuple[str | int, ...], value: Plain) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    holder: Any = changed
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return changed


def test_the_documents_have_every_field_of_the_crds() -> None:
    there = {(document["kind"], _generic(path)) for document in DOCUMENTS for path in _places(document)}

    for kind in KINDS:
        assert set(_fields(openapi_schema(kind))) - {path for of, path in there if of == kind} == set()


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _fields(field, f"{path}.{name}")
    if "items" in schema:
        yield f"{path}[]"
        yield from _fields(schema["items"], f"{path}[]")


def _generic(path: tuple[str | int, ...]) -> str:
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["metadata"]["name"])
def test_both_accept_the_documents_with_every_field(document: dict[str, Any]) -> None:
    assert is_accepted(document)
    assert model_accepts(document)


VALUES: tuple[Any, ...] = (
    True,
    -1,
    0,
    1,
    3,
    1.5,
    10**6,
    2**31,
    10**10,
    "",
    "a",
    "A",
    "0",
    "4",
    "1.5",
    "0m",
    "10m",
    "a/b",
    "/a",
    "../a.csv",
    "x" * 9000,
    [],
    [0],
    ["a"],
)
VALUES += ({}, {"a": "b"}, {"a": 1}, [1] * 20, ["a"] * 100, {str(n): "x" for n in range(200)})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["metadata"]["name"])
def test_both_accept_the_same_values_of_every_field(document: dict[str, Any]) -> None:
    fields = [path for path in _places(document) if path[:1] in (("spec",), ("status",)) and path[-1] != "type"]
    differing = [
        f"{_generic(path)} = {json.dumps(value)[:60]}: the model {'accepts' if model_accepts(changed) else 'refuses'} it"
        for path in fields
        for value in VALUES
        if model_accepts(changed := _changed(document, path, value)) != is_accepted(changed)
    ]

    assert differing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["metadata"]["name"])
def test_both_agree_on_a_missing_and_an_unknown_field(document: dict[str, Any]) -> None:
    differing = []
    for path in _places(document):
        if path[:1] not in (("spec",), ("status",)) or path[:2] == ("spec", "task"):
            continue
        without = copy.deepcopy(document)
        holder: Any = without
        for part in path[:-1]:
            holder = holder[part]
        del holder[path[-1]]
        added = _changed(document, (*path, "typo"), "x") if isinstance(_value(document, path), dict) else without
        differing += [f"{_generic(path)}" for one in (without, added) if model_accepts(one) != is_accepted(one)]

    assert differing == []


def _value(document: Plain, path: tuple[str | int, ...]) -> Plain:
    for part in path:
        document = document[part]
    return document
