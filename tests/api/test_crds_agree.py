"""The CRDs' YAML and the pydantic models are written separately and must agree. Each difference is reported with its path.

Names, types, what is required, defaults, bounds, enums and patterns are compared here; the CRDs' CEL rules are not (they
need the real API server).
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from crds import default_status, is_accepted, openapi_schema
from smallest_documents import RUN_DOCUMENT, SITE_DOCUMENT

from fedpipe_operator.api import EdgeSite, FederatedFineTune, Reason

KINDS = {"EdgeSite": EdgeSite, "FederatedFineTune": FederatedFineTune}
FACTS = ("type", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties")
EXCLUSIVE = ("exclusiveMinimum", "exclusiveMaximum")

Plain = Any
"""A value of YAML or JSON."""
Facts = dict[str, dict[str, Any]]
"""The facts of one side about each path of spec and status: `[]` stands for an entry of a list, `{}` for a value of a map."""


# --- The models ---


def model_facts(kind: str) -> Facts:
    root = KINDS[kind].model_json_schema(by_alias=True)
    fields = {name: root["properties"][name] for name in ("spec", "status")}
    return dict(_walk_model({"type": "object", "properties": fields, "required": ["spec"]}, root, ""))


def _walk_model(schema: dict[str, Any], root: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    schema = _flat(schema, root)
    yield path, _facts(schema) | {"default": _plain_default(schema.get("default"), path)}
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        for inner, facts in _walk_model(field, root, f"{path}.{name}"):
            yield inner, facts | ({"required": name in required} if inner == f"{path}.{name}" else {})
    for key, sign in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(schema.get(key), dict):
            yield from _walk_model(schema[key], root, path + sign)


def _flat(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The schema without references, without the null of an optional field, and a union as one object of all its fields."""
    if "$ref" in schema:
        referred = root["$defs"][schema["$ref"].rpartition("/")[2]]
        return _flat({**referred, **{key: value for key, value in schema.items() if key != "$ref"}}, root)
    if "oneOf" in schema:
        return _union([_flat(member, root) for member in schema["oneOf"]])
    if "anyOf" in schema:
        (member,) = [member for member in schema["anyOf"] if member.get("type") != "null"]
        return _flat({**member, **{key: value for key, value in schema.items() if key != "anyOf"}}, root)
    return schema | ({"enum": [schema["const"]]} if "const" in schema else {})


def _union(members: list[dict[str, Any]]) -> dict[str, Any]:
    """The API server would set a default of one member in all others too, so the CRD must have none."""
    properties: dict[str, Any] = {}
    for name in dict.fromkeys(name for member in members for name in member["properties"]):
        fields = [member["properties"][name] for member in members if name in member["properties"]]
        if name == "type":
            properties[name] = {"type": "string", "enum": [field["const"] for field in fields]}
            continue
        bare = [{key: value for key, value in field.items() if key not in ("default", "title")} for field in fields]
        assert all(field == bare[0] for field in bare), f"the members of the union disagree on {name}"
        properties[name] = bare[0]
    return {"type": "object", "properties": properties, "required": ["type"]}


def _plain_default(default: Plain, path: str) -> Plain:
    """The default as the CRD has it: none if empty or within status, which is written as a whole; `{}` if the fields have defaults."""
    if default in (None, [], {}, "") or path.startswith(".status"):
        return None
    return {} if isinstance(default, dict) else default


# --- The CRDs ---


def crd_facts(schema: dict[str, Any]) -> Facts:
    fields = {name: schema["properties"][name] for name in ("spec", "status")}
    return dict(_walk_crd({"type": "object", "properties": fields, "required": ["spec"]}, ""))


def _walk_crd(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if schema.get("x-kubernetes-int-or-string"):  # the models read a number there as its text
        schema = {key: value for key, value in schema.items() if key != "minimum"} | {"type": "string"}
    yield path, _facts(schema) | {"default": None if path == ".status" else schema.get("default")}
    for name, field in schema.get("properties", {}).items():
        for inner, facts in _walk_crd(field, f"{path}.{name}"):
            yield inner, facts | ({"required": name in schema.get("required", [])} if inner == f"{path}.{name}" else {})
    for key, sign in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from _walk_crd(schema[key], path + sign)


def _facts(schema: dict[str, Any]) -> dict[str, Any]:
    """Bounds are compared as a number and a flag: JSON Schema has the exclusive bound itself, OpenAPI 3.0 a flag beside it."""
    facts = {name: schema.get(name) for name in FACTS}
    for exclusive, bound in zip(EXCLUSIVE, ("minimum", "maximum"), strict=True):
        value = schema.get(exclusive)
        facts[exclusive] = value is not None and value is not False
        if facts[exclusive] and value is not True:
            facts[bound] = value
    facts["enum"] = sorted(map(str, schema["enum"])) if "enum" in schema else None
    return facts


# --- The comparison ---


def differences(model: Facts, crd: Facts) -> list[str]:
    found = [f"{path}: only in the CRD" for path in crd.keys() - model.keys()]
    found += [f"{path}: only in the model" for path in model.keys() - crd.keys()]
    for path in model.keys() & crd.keys():
        for fact, value in model[path].items():
            if value != crd[path].get(fact):
                found.append(f"{path}: {fact} is {value} in the model, {crd[path].get(fact)} in the CRD")
    return sorted(found)


@pytest.mark.parametrize("kind", KINDS)
def test_model_and_crd_agree_on_every_field(kind: str) -> None:
    assert differences(model_facts(kind), crd_facts(openapi_schema(kind))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_model_and_crd_accept_the_default_status_which_says_that_the_object_was_not_observed(kind: str) -> None:
    status = default_status(kind)
    document = {"EdgeSite": SITE_DOCUMENT, "FederatedFineTune": RUN_DOCUMENT}[kind] | {"status": status}
    (ready,) = KINDS[kind].model_validate(document).status.conditions

    assert is_accepted(document)
    assert status["observedGeneration"] == -1
    assert (ready.type, ready.status, ready.reason) == ("Ready", "Unknown", Reason.PENDING)
    assert ready.last_transition_time == "1970-01-01T00:00:00Z"


def test_a_field_that_the_crd_lacks_is_reported_with_its_path() -> None:
    schema = copy.deepcopy(openapi_schema("FederatedFineTune"))
    del schema["properties"]["spec"]["properties"]["rounds"]["properties"]["patience"]

    assert differences(model_facts("FederatedFineTune"), crd_facts(schema)) == [".spec.rounds.patience: only in the model"]


def test_a_field_that_the_model_lacks_is_reported_with_its_path() -> None:
    schema = copy.deepcopy(openapi_schema("EdgeSite"))
    schema["properties"]["spec"]["properties"]["colour"] = {"type": "string"}

    assert differences(model_facts("EdgeSite"), crd_facts(schema)) == [".spec.colour: only in the CRD"]


def test_a_changed_bound_is_reported_with_its_path() -> None:
    schema = copy.deepcopy(openapi_schema("FederatedFineTune"))
    schema["properties"]["spec"]["properties"]["sites"]["properties"]["quorum"]["exclusiveMinimum"] = False

    assert differences(model_facts("FederatedFineTune"), crd_facts(schema)) == [
        ".spec.sites.quorum: exclusiveMinimum is True in the model, False in the CRD"
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_in_a_spec_is_bounded_and_every_list_says_how_it_merges(kind: str) -> None:
    needed = {"string": ("maxLength", "enum"), "array": ("maxItems",), "integer": ("maximum", "enum"), "number": ("maximum",)}
    facts = crd_facts(openapi_schema(kind))
    unbounded = [
        path
        for path, one in facts.items()
        if path.startswith(".spec") and not any(one[key] is not None for key in needed.get(one["type"], ("type",)))
    ]
    maps = [path.removesuffix("{}") for path in facts if path.endswith("{}")]

    assert unbounded == []
    assert [path for path in maps if facts[path]["maxProperties"] is None] == []
    assert list(_lists_without_type(openapi_schema(kind), "")) == []


def _lists_without_type(schema: dict[str, Any], path: str) -> Iterator[str]:
    if schema.get("type") == "array" and "x-kubernetes-list-type" not in schema:
        yield path
    for name, field in schema.get("properties", {}).items():
        yield from _lists_without_type(field, f"{path}.{name}")
    if "items" in schema:
        yield from _lists_without_type(schema["items"], path + "[]")
