"""What is wrong with a manifest, by the types of the Kubernetes client: an unknown field, another type, a field that is missing."""

import re
from collections.abc import Mapping
from typing import Any, Final

import kubernetes.client.models as client_models
from pydantic import ValidationError

Fields = Mapping[str, str]
"""The type of each field of a class, by its name in a manifest."""
_SCALARS: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "object": (object,),
    "datetime": (str,),
    "ResourceQuantity": (str, int),
    "IntOrString": (int, str),
}


def problems(value: object, type_: str, others: Mapping[str, Fields], path: str = "") -> list[str]:
    """A line for each thing that is wrong.

    Args:
        value: a part of a manifest.
        type_: its type, as the client names it.
        others: classes that the client does not have.
        path: of the part.
    """
    if list_of := re.fullmatch(r"[Ll]ist\[(.+)\]", type_):
        if not isinstance(value, list):
            return [f"{path}: {value!r} is no list"]
        return [one for at, item in enumerate(value) for one in problems(item, list_of[1], others, f"{path}[{at}]")]
    if dict_of := re.fullmatch(r"dict\(str, (.+)\)|Dict\[str, (.+)\]", type_):
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is no map"]
        return [one for key, item in value.items() for one in problems(item, dict_of[1] or dict_of[2], others, f"{path}.{key}")]
    if type_ in _SCALARS:
        is_right = isinstance(value, _SCALARS[type_]) and (type_ == "bool" or not isinstance(value, bool))
        return [] if is_right else [f"{path}: {value!r} is no {type_}"]
    return _problems_of_object(value, type_, others, path)


def _problems_of_object(value: object, type_: str, others: Mapping[str, Fields], path: str) -> list[str]:
    fields = others[type_] if type_ in others else _fields(type_)
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is no {type_}"]
    found = [f"{path}.{key}: {type_} has no such field" for key in value if key not in fields]
    found += [one for key, item in value.items() if key in fields for one in problems(item, fields[key], others, f"{path}.{key}")]
    return found or ([] if type_ in others else _missing(value, type_, path))


def _fields(type_: str) -> Fields:
    model: Any = getattr(client_models, type_)
    return {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}


def _missing(value: Mapping[str, Any], type_: str, path: str) -> list[str]:
    """The client's own check of the fields that must be there."""
    model: Any = getattr(client_models, type_)
    names = {theirs: ours for ours, theirs in model.attribute_map.items()}
    try:
        model(**{names[key]: item for key, item in value.items()})
    except ValidationError as error:
        return [f"{path}.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
    return []
