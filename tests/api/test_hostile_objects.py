"""Whatever somebody writes into an object, it is valid or its problems are told: nothing else is raised, where the operator reads it."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.api.parse import parse_object

KINDS = {"EdgeSite": EdgeSite, "FederatedFineTune": FederatedFineTune}
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(Path(__file__).with_name("every_field.yaml").read_text()))
NASTY: list[Any] = [
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "9" * 5000 + "Ti",
    "9" * 30 + "h",
    "٣Gi",
    "\u0000",
    "\ud800",
    "{" * 500 + "a" + "}" * 500,
    "(" * 500 + "a" + ")" * 500,
    "(a{4294967296})",
    "http://[::1",
    "pvc://a/../b",
    [[[[]]]],
    {"a": {"b": {}}},
    None,
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value within is."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


def with_value(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(document)
    holder: Any = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return changed


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["metadata"]["name"])
def test_whatever_a_field_holds_the_object_is_valid_or_its_problems_are_told(document: dict[str, Any]) -> None:
    for path in places(document):
        for value in NASTY:
            found, problems = parse_object(with_value(document, path, value), KINDS[document["kind"]])

            assert found is not None or problems, f"{path}: {value!r:.40}"
