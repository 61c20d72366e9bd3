"""pydantic's errors as messages to the user: what is wrong with the value, and what to write instead.

A table of pure functions by pydantic's error type. The allowed values of a field come from the model's JSON schema.
"""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic_core import ErrorDetails

from fedpipe_operator.api import edgesite, finetune, meta, quantities
from fedpipe_operator.api.documents import FieldPath, FieldProblem, format_path

Schema = Mapping[str, Any]

_FORMAT_ADVICE: Final = {
    quantities.QUANTITY_PATTERN: "write a number above 0 with an optional suffix, such as 24Gi, 500m or 8",
    quantities.DURATION_PATTERN: "write a duration above 0, such as 90s, 30m or 1h30m",
    meta.NAME_PATTERN: "write lower-case letters, digits and dashes; start with a letter, do not end with a dash",
    meta.NAMESPACE_PATTERN: "write lower-case letters, digits and dashes; do not start or end with a dash",
    meta.OBJECT_PATTERN: "write lower-case letters, digits, dashes and dots; start and end with a letter or digit",
    edgesite.DATA_PATTERN: "write a relative path that ends in .jsonl, .json, .csv or .tsv (also with .gz or .zst) or in .parquet, "
    "or names a folder: without a dot in its name, or with / behind it; no part of the path may start with a dot",
    finetune.SOURCE_PATTERN: "write hf://org/name@revision, s3://bucket/folder, pvc://claim/folder or file:///folder",
    finetune.BUCKET_PATTERN: "write 3 to 63 lower-case letters, digits, dashes and dots",
    finetune.PREFIX_PATTERN: "write letters, digits, dashes, dots, underscores, and single slashes between parts; start no part with a dot",
    finetune.UID_PATTERN: "write the metadata.uid of the earlier object, which is the last part of its folder's name in the bucket",
    finetune.ENDPOINT_PATTERN: "write http:// or https:// and the host, without a path or a trailing slash",
}

_TYPE_NAMES: Final = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "a mapping"}


def problem_of(error: ErrorDetails, schema: Schema) -> FieldProblem:
    """The path of an error in the user's document, and the message.

    Args:
        error: an entry of `ValidationError.errors()`, from a validation by alias.
        schema: the JSON schema of the model that was validated.
    """
    path, parent = _user_path(error["loc"], schema)
    match error["type"]:
        case "extra_forbidden":
            return path, _unknown_field(path, parent, schema)
        case "union_tag_not_found":
            return (*path, "type"), f"required field is missing: write one of {', '.join(_tags(_schema_at(schema, path)))}"
        case "union_tag_invalid":
            return (*path, "type"), _invalid_choice(error["input"].get("type"), _tags(_schema_at(schema, path)))
        case "literal_error" | "enum":
            return path, _invalid_choice(error["input"], _choices(_schema_at(schema, path)))
    message = _MESSAGES.get(error["type"])
    return path, message(error) if message else f"{error['msg']}, but it is {_describe(error['input'])}: correct it"


def _describe(value: object) -> str:
    """The type of a value and, if it is short text or a number, the value."""
    text = str(value) if isinstance(value, int | float | str) else ""
    return f"{_TYPE_NAMES.get(type(value), 'null')} ({text[:60]})" if text else _TYPE_NAMES.get(type(value), "null")


def _wrong_type(expected: str, advice: str) -> Callable[[ErrorDetails], str]:
    return lambda error: f"must be {expected}, not {_describe(error['input'])}: {advice}"


def _not_a_string(error: ErrorDetails) -> str:
    value = error["input"]
    advice = (
        f'write it in quotes, "{str(value).lower() if isinstance(value, bool) else value}"'
        if isinstance(value, int | float)
        else "write a string"
    )
    return f"must be a string, not {_describe(value)}: {advice}"


def _bound(relation: str, key: str) -> Callable[[ErrorDetails], str]:
    return lambda error: f"is {error['input']}, but must be {relation} {error['ctx'][key]:g}: change the number"


def _length(relation: str, key: str, advice: str) -> Callable[[ErrorDetails], str]:
    def message(error: ErrorDetails) -> str:
        unit = "characters" if isinstance(error["input"], str) else "entries"
        return f"has {len(error['input'])} {unit}, but must have {relation} {error['ctx'][key]}: {advice}"

    return message


def _format(error: ErrorDetails) -> str:
    pattern = error["ctx"]["pattern"]
    return f"invalid format {error['input']!r}: {_FORMAT_ADVICE.get(pattern, f'write a string that matches {pattern}')}"


def _own_message(error: ErrorDetails) -> str:
    return str(error["ctx"]["error"])


def _invalid_json(error: ErrorDetails) -> str:
    """Of YAML, whose texts have escapes for what no file in UTF-8 has, a document is made that is no JSON."""
    if "hex escape" in error["ctx"]["error"]:
        return "a text in it is not Unicode (half of a surrogate pair, \\ud800 to \\udfff): write the whole character"
    return error["msg"]


_MESSAGES: Final[dict[str, Callable[[ErrorDetails], str]]] = {
    "missing": lambda error: f"required field is missing: add {error['loc'][-1]}",
    "string_type": _not_a_string,
    "int_type": _wrong_type("an integer", "write it without quotes and without a fraction"),
    "float_type": _wrong_type("a number", "write it without quotes"),
    "bool_type": _wrong_type("true or false", "write true or false without quotes"),
    "tuple_type": _wrong_type("a list", "write [a, b], or each entry on its own line after a dash"),
    "dict_type": _wrong_type("a mapping", "write its fields as `name: value`, indented below it"),
    "model_type": _wrong_type("a mapping", "write its fields as `name: value`, indented below it"),
    "string_pattern_mismatch": _format,
    "string_too_long": _length("at most", "max_length", "shorten it"),
    "string_too_short": _length("at least", "min_length", "write a longer string"),
    "too_long": _length("at most", "max_length", "remove entries"),
    "too_short": _length("at least", "min_length", "add entries"),
    "greater_than": _bound("above", "gt"),
    "greater_than_equal": _bound("at least", "ge"),
    "less_than": _bound("below", "lt"),
    "less_than_equal": _bound("at most", "le"),
    "json_invalid": _invalid_json,
    "value_error": _own_message,
}


def _invalid_choice(value: object, choices: list[str]) -> str:
    similar = get_close_matches(str(value), choices, n=1) or [choice for choice in choices if choice.lower() == str(value).lower()]
    hint = f" (did you mean {similar[0]}?)" if similar else ""
    return f"invalid value {value!r}{hint}: write one of {', '.join(choices)}"


def _unknown_field(path: FieldPath, parent: Schema, schema: Schema) -> str:
    """Suggests a sibling of similar name, else a field of this name elsewhere; else lists the fields of the parent."""
    name, siblings = str(path[-1]), list(parent.get("properties", {}))
    similar = get_close_matches(name, siblings, n=1, cutoff=0.7)
    if similar:
        return f"unknown field: did you mean {similar[0]}?"
    elsewhere = [field for field in _field_paths(schema, schema) if field[-1] == name and field[0] == path[0]]
    if elsewhere:
        return f"unknown field: did you mean {format_path(elsewhere[0])}?"
    only = ", and a site adds nothing else to its pods" if "podTemplate" in path[:-1] else ""
    return f"unknown field: the fields here are {', '.join(siblings)}{only}"


def _field_paths(schema: Schema, root: Schema, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of all fields below `schema`."""
    for name, field in schema.get("properties", {}).items():
        yield (*path, name)
        for alternative in _alternatives(field, root):
            yield from _field_paths(alternative, root, (*path, name))


def _resolve(schema: Schema, root: Schema) -> Schema:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _alternatives(schema: Schema, root: Schema) -> list[Schema]:
    """The members of a union without null, or the schema itself."""
    schema = _resolve(schema, root)
    members = schema.get("oneOf") or schema.get("anyOf") or [schema]
    return [resolved for member in members if (resolved := _resolve(member, root)).get("type") != "null"]


def _user_path(location: tuple[str | int, ...], root: Schema) -> tuple[FieldPath, Schema]:
    """The location without the tags of union members that pydantic inserts, and the schema of the last part's parent."""
    path: list[str | int] = []
    schema, parent = root, root
    for part in location:
        members = _members_by_tag(schema, root)
        if part in members:
            schema = members[str(part)]
            continue
        path.append(part)
        parent, schema = schema, _child_schema(schema, part, root)
    return path, parent


def _members_by_tag(schema: Schema, root: Schema) -> dict[str, Schema]:
    mapping = schema.get("discriminator", {}).get("mapping", {})
    return {tag: _resolve({"$ref": reference}, root) for tag, reference in mapping.items()}


def _child_schema(schema: Schema, part: str | int, root: Schema) -> Schema:
    if isinstance(part, int):
        field = schema.get("items", {})
    else:
        field = schema.get("properties", {}).get(part, schema.get("additionalProperties", {}))
    field = field if isinstance(field, dict) else {}
    alternatives = _alternatives(field, root)
    return _resolve(field, root) if "discriminator" in field or len(alternatives) != 1 else alternatives[0]


def _schema_at(root: Schema, path: FieldPath) -> Schema:
    schema = root
    for part in path:
        members = list(_members_by_tag(schema, root).values()) or [schema]
        schema = next((child for member in members if (child := _child_schema(member, part, root))), {})
    return schema


def _tags(schema: Schema) -> list[str]:
    return list(schema.get("discriminator", {}).get("mapping", {}))


def _choices(schema: Schema) -> list[str]:
    return [str(choice) for choice in schema.get("enum", [schema["const"]] if "const" in schema else [])]
