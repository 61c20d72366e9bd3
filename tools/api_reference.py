"""Writes docs/api-reference.md from the CustomResourceDefinitions: `python tools/api_reference.py`. A test compares the two."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[1]
CRDS: Final = ("edgesites", "federatedfinetunes")
PAGE: Final = ROOT / "docs" / "api-reference.md"

Schema = Mapping[str, Any]

_UNITS: Final = {"Length": "characters", "Items": "items", "Properties": "entries"}
"""What a bound counts, by the end of its keyword; a number has none."""
_HEAD: Final = """\
# API reference

Every field of the two kinds, from [`crds/`](../crds) by `tools/api_reference.py`; do not edit this page. `fedpipe validate FILE` checks a
file without a cluster, and `kubectl explain` shows the same descriptions. `[]` behind a name is an item of a list, `{}` a value of a map.
"""


def page(crds: Iterator[Schema]) -> str:
    """The whole page, from the CRDs as they are in YAML."""
    return "\n".join([_HEAD, *(section for crd in crds for section in _kind(crd))])


def rows(schema: Schema, path: str = "") -> Iterator[str]:
    """A line of a table for each field below this schema, parents first, in the order of the CRD."""
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        yield from _field(field, f"{path}{name}", required=name in required)


def rules(schema: Schema) -> Iterator[str]:
    """The message of every rule at or below this schema."""
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", []) if "message" in rule)
    for below in (
        *schema.get("properties", {}).values(),
        *(schema[one] for one in ("items", "additionalProperties") if _is_schema(schema, one)),
    ):
        yield from rules(below)


def _kind(crd: Schema) -> Iterator[str]:
    names = crd["spec"]["names"]
    for version in crd["spec"]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        short = f" (`kubectl get {names['shortNames'][0]}`)" if names.get("shortNames") else ""
        yield f"## {names['kind']}\n\n`{crd['spec']['group']}/{version['name']}`{short}. {schema['description']}\n"
        for part in ("spec", "status"):
            yield from (f"### {names['kind']} {part}\n", "| field | type | default | |\n|---|---|---|---|")
            yield "\n".join(rows(schema["properties"][part], f"{part}.")) + "\n"
        yield f"### Rules of {names['kind']}\n\nWhat the API server refuses beside a wrong type, in its words:\n"
        yield "\n".join(f"* {_text(message)}" for message in dict.fromkeys(rules(schema))) + "\n"


def _field(field: Schema, path: str, *, required: bool) -> Iterator[str]:
    default = "*required*" if required else f"`{_literal(field['default'])}`" if "default" in field else ""
    about = ". ".join(part.rstrip(".") for part in (field.get("description", ""), _bounds(field)) if part)
    yield f"| `{path}` | {_type(field)} | {default} | {_text(about)}{'.' if about else ''} |"
    yield from rows(field, f"{path}.")
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if _is_schema(field, key):
            yield from rows(field[key], f"{path}{suffix}.")


def _is_schema(schema: Schema, key: str) -> bool:
    return isinstance(schema.get(key), Mapping)


def _type(field: Schema) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in field:
        return "one of " + ", ".join(f"`{one}`" for one in field["enum"])
    if _is_schema(field, "items"):
        return f"list of {_type(field['items'])}"
    if _is_schema(field, "additionalProperties"):
        return f"map of {_type(field['additionalProperties'])}"
    return str(field.get("type", "any"))


def _bounds(field: Schema) -> str:
    """The bounds of a number, or of a length; a lower one of 1 says no more than that there is one."""
    lower = "more than" if field.get("exclusiveMinimum") else "at least"
    numbers = [f"{word} {field[key]}" for key, word in (("minimum", lower), ("maximum", "at most")) if key in field]
    lengths = [f"at most {field[f'max{end}']} {unit}" for end, unit in _UNITS.items() if f"max{end}" in field]
    return ", ".join([*numbers, *lengths]).capitalize()


def _literal(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...").removesuffix("...").strip()


def _text(text: str) -> str:
    """A sentence as a cell or an item of Markdown: on one line, and nothing in it is a tag or a column."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def read() -> Iterator[Schema]:
    """The CRDs."""
    for name in CRDS:
        yield yaml.safe_load((ROOT / "crds" / f"{name}.yaml").read_text(encoding="utf-8"))


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(read()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
