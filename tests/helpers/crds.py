"""The CRDs as the API server would use them, for a test: its schema as JSON Schema. CEL rules are not evaluated here."""

import copy
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]

_CRDS = {
    kind: yaml.safe_load((ROOT / "crds" / file).read_text())
    for kind, file in (("EdgeSite", "edgesites.yaml"), ("FederatedFineTune", "federatedfinetunes.yaml"))
}


def openapi_schema(kind: str) -> dict[str, Any]:
    """The schema of the one version of this kind, as it stands in the YAML."""
    schema: dict[str, Any] = _CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def default_status(kind: str) -> dict[str, Any]:
    """The status that the API server shows of an object of this kind while nothing has written one."""
    status: dict[str, Any] = copy.deepcopy(openapi_schema(kind)["properties"]["status"]["default"])
    return status


def is_accepted(document: dict[str, Any]) -> bool:
    """Whether the schema of the document's kind accepts it, unknown fields refused as `kubectl apply` refuses them."""
    kind = str(document.get("kind"))
    return kind in _CRDS and _validator(kind).is_valid(document)


def _validator(kind: str) -> Draft202012Validator:
    schema = _as_json_schema(openapi_schema(kind))
    schema["required"] = ["apiVersion", "kind", "metadata", *schema["required"]]
    schema["properties"]["apiVersion"] = {"const": f"{_CRDS[kind]['spec']['group']}/{_CRDS[kind]['spec']['versions'][0]['name']}"}
    schema["properties"]["metadata"] = {**schema["properties"]["metadata"], "required": ["name"], "additionalProperties": True}
    return Draft202012Validator(schema)


def _as_json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI 3.0 says `exclusiveMinimum: true` beside `minimum`, JSON Schema gives the number itself."""
    converted = {key: value for key, value in schema.items() if key not in ("exclusiveMinimum", "exclusiveMaximum", "default")}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if schema.get(exclusive):
            converted[exclusive] = converted.pop(bound)
    if "properties" in schema:
        converted["properties"] = {name: _as_json_schema(field) for name, field in schema["properties"].items()}
        converted["additionalProperties"] = False
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            converted[inner] = _as_json_schema(schema[inner])
    return converted
