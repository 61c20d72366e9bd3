"""pydantic's errors as sentences: what is wrong with the value, and what to write in its place.

Pure functions in a table, by pydantic's name of the error. What a field may hold is looked up in the model's JSON schema.
"""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic_core import ErrorDetails

from fedpipe_operator.api import edgesite, finetune, meta, quantities
from fedpipe_operator.api.documents import Path, dotted

Schema = Mapping[str, Any]

_FORMS: Final = {
    quantities.QUANTITY_PATTERN: "write a number above 0 with an optional suffix, such as 24Gi, 500m or 8",
    quantities.DURATION_PATTERN: "write a duration above 0, such as 90s, 30m or 1h30m",
    meta.NAME_PATTERN: "write lower-case letters, digits and dashes, a letter first and no dash last",
    meta.NAMESPACE_PATTERN: "write lower-case letters, digits and dashes, no dash first or last",
    meta.OBJECT_PATTERN: "write lower-case letters, digits, dashes and dots, a letter or digit first and last",
    edgesite.DATA_PATTERN: "write a path within the volume that ends in .jsonl, .csv or .parquet, no part of it with a dot first",
    finetune.SOURCE_PATTERN: "write hf://org/name@revision, s3://bucket/folder, pvc://claim/folder or file:///folder",
    finetune.BUCKET_PATTERN: "write 3 to 63 lower-case letters, digits, dashes and dots",
    finetune.PREFIX_PATTERN: "write parts of letters, digits, dashes, dots and underscores with single slashes between them, no dot first",
    finetune.ENDPOINT_PATTERN: "write http:// or https:// and the host, without a path or a slash at the end",
}

_TYPES: Final = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a mapping"}


def sentence(error: ErrorDetails, schema: Schema) -> tuple[Path, str]:
    """Where an error of pydantic is in the user's document, and what to tell the user of it.

    Args:
        error: one of `ValidationError.errors()`, of a validation by alias.
        schema: the JSON schema of the model that was validated.
    """
    path, parent = _user_path(error["loc"], schema)
    match error["type"]:
        case "extra_forbidden":
            return path, _unknown(path, parent, schema)
        case "union_tag_not_found":
            return (*path, "type"), f"is missing: write one of {', '.join(_tags(_at(schema, path)))}"
        case "union_tag_invalid":
            return (*path, "type"), _none_of(error["input"].get("type"), _tags(_at(schema, path)))
        case "literal_error" | "enum":
            return path, _none_of(error["input"], _choices(_at(schema, path)))
    wording = _WORDINGS.get(error["type"])
    return path, wording(error) if wording else f"{error['msg']} (it is {_shown(error['input'])}): correct it"


def _shown(value: object) -> str:
    text = str(value) if isinstance(value, int | float | str) else ""
    return f"{_TYPES.get(type(value), 'nothing')} ({text[:60]})" if text else _TYPES.get(type(value), "nothing")


def _wrong_type(wanted: str, advice: str) -> Callable[[ErrorDetails], str]:
    return lambda error: f"must be {wanted}, not {_shown(error['input'])}: {advice}"


def _no_text(error: ErrorDetails) -> str:
    value = error["input"]
    advice = (
        f'write it in quotes, "{str(value).lower() if isinstance(value, bool) else value}"'
        if isinstance(value, int | float)
        else "write a text"
    )
    return f"must be a text, not {_shown(value)}: {advice}"


def _bound(relation: str, key: str) -> Callable[[ErrorDetails], str]:
    return lambda error: f"is {error['input']}, but must be {relation} {error['ctx'][key]:g}: change the number"


def _size(relation: str, key: str) -> Callable[[ErrorDetails], str]:
    def wording(error: ErrorDetails) -> str:
        unit = "characters" if isinstance(error["input"], str) else "entries"
        return f"has {len(error['input'])} {unit}, but must have {relation} {error['ctx'][key]}: make it fit"

    return wording


def _form(error: ErrorDetails) -> str:
    pattern = error["ctx"]["pattern"]
    return f"{error['input']!r} is not of the form it must have: {_FORMS.get(pattern, f'write a text that matches {pattern}')}"


def _own_words(error: ErrorDetails) -> str:
    return str(error["ctx"]["error"])


_WORDINGS: Final[dict[str, Callable[[ErrorDetails], str]]] = {
    "missing": lambda error: f"is missing: add {error['loc'][-1]}",
    "string_type": _no_text,
    "int_type": _wrong_type("a whole number", "write it without quotes and without a fraction"),
    "float_type": _wrong_type("a number", "write it without quotes"),
    "bool_type": _wrong_type("true or false", "write true or false without quotes"),
    "tuple_type": _wrong_type("a list", "write [a, b] or a line with a dash for each entry"),
    "dict_type": _wrong_type("a mapping", "write its fields as `name: value`, indented below it"),
    "model_type": _wrong_type("a mapping", "write its fields as `name: value`, indented below it"),
    "string_pattern_mismatch": _form,
    "string_too_long": _size("at most", "max_length"),
    "string_too_short": _size("at least", "min_length"),
    "too_long": _size("at most", "max_length"),
    "too_short": _size("at least", "min_length"),
    "greater_than": _bound("above", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("below", "lt"),
    "less_than_equal": _bound("at most", "le"),
    "value_error": _own_words,
}


def _none_of(value: object, choices: list[str]) -> str:
    near = get_close_matches(str(value), choices, n=1) or [one for one in choices if one.lower() == str(value).lower()]
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"{value!r} is not known here{meant}: write one of {', '.join(choices)}"


def _unknown(path: Path, parent: Schema, schema: Schema) -> str:
    """An unknown field: the sibling it resembles, the place where a field of that name is, or what there is here."""
    name, siblings = str(path[-1]), list(parent.get("properties", {}))
    near = get_close_matches(name, siblings, n=1, cutoff=0.7)
    if near:
        return f"there is no such field: did you mean {near[0]}?"
    elsewhere = [place for place in _places(schema, schema) if place[-1] == name and place[0] == path[0]]
    if elsewhere:
        return f"there is no such field here: did you mean {dotted(elsewhere[0])}?"
    return f"there is no such field: the fields here are {', '.join(siblings)}"


def _places(schema: Schema, root: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field below `schema`."""
    for name, field in schema.get("properties", {}).items():
        yield (*path, name)
        for branch in _branches(field, root):
            yield from _places(branch, root, (*path, name))


def _resolved(schema: Schema, root: Schema) -> Schema:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _branches(schema: Schema, root: Schema) -> list[Schema]:
    """What a value may be: the members of a union, or the schema itself."""
    schema = _resolved(schema, root)
    members = schema.get("oneOf") or schema.get("anyOf") or [schema]
    return [resolved for member in members if (resolved := _resolved(member, root)).get("type") != "null"]


def _user_path(location: tuple[str | int, ...], root: Schema) -> tuple[Path, Schema]:
    """The location without the union members' tags that pydantic puts in, and the schema of what holds the last part."""
    path: list[str | int] = []
    schema, parent = root, root
    for part in location:
        members = _by_tag(schema, root)
        if part in members:
            schema = members[str(part)]
            continue
        path.append(part)
        parent, schema = schema, _child(schema, part, root)
    return path, parent


def _by_tag(schema: Schema, root: Schema) -> dict[str, Schema]:
    mapping = schema.get("discriminator", {}).get("mapping", {})
    return {tag: _resolved({"$ref": reference}, root) for tag, reference in mapping.items()}


def _child(schema: Schema, part: str | int, root: Schema) -> Schema:
    if isinstance(part, int):
        field = schema.get("items", {})
    else:
        field = schema.get("properties", {}).get(part, schema.get("additionalProperties", {}))
    field = field if isinstance(field, dict) else {}
    branches = _branches(field, root)
    return _resolved(field, root) if "discriminator" in field or len(branches) != 1 else branches[0]


def _at(root: Schema, path: Path) -> Schema:
    schema = root
    for part in path:
        members = list(_by_tag(schema, root).values()) or [schema]
        schema = next((child for member in members if (child := _child(member, part, root))), {})
    return schema


def _tags(schema: Schema) -> list[str]:
    return list(schema.get("discriminator", {}).get("mapping", {}))


def _choices(schema: Schema) -> list[str]:
    return [str(one) for one in schema.get("enum", [schema["const"]] if "const" in schema else [])]
