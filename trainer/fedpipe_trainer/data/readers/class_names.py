"""The names of the classes whose numbers a column has, as the `datasets` library writes them beside its tables: a ClassLabel."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedpipe_trainer.data.readers.record import MIB, BadRowError

FEATURES_FILE: Final = "dataset_info.json"
"""Of a saved dataset; its tables have the same in their metadata, unless another program wrote them."""
_LONGEST: Final = 16 * MIB
_LISTS: Final = frozenset({"Sequence", "List", "LargeList"})
"""Features that are lists of another one."""
Features = Mapping[str, Any] | None
"""By column: what the library says of it. None: nothing is known."""


def features_in(metadata: bytes, file: Path | None) -> Features:
    """The features in the metadata of a table, or else in the file of its folder, if it is one of a saved dataset.

    Raises:
        OSError: the file is there and cannot be read.
    """
    if 0 < len(metadata) <= _LONGEST and (found := _parsed(metadata, "info")) is not None:
        return found
    return _parsed(file.read_bytes()) if file and file.is_file() and file.stat().st_size <= _LONGEST else None


def _parsed(text: bytes, *keys: str) -> Features:
    try:
        found = json.loads(text)
        for key in (*keys, "features"):
            found = found[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def class_names(features: Features, parts: Sequence[str]) -> list[str] | None:
    """The names of the classes of the column at this path, or of the elements of its lists; None if it is no ClassLabel."""
    found: Any = features
    for part in parts:
        found = _element(found)
        found = found.get(part) if isinstance(found, dict) else None
    found = _element(found)
    names = found.get("names") if isinstance(found, dict) and found.get("_type") == "ClassLabel" else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _element(feature: Any) -> Any:  # noqa: ANN401 -- what a file says
    """What the lists of a feature hold, itself if it is none; the library has had four ways to write one."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and feature.get("_type") in _LISTS and "feature" in feature:
            feature = feature["feature"]
        else:
            return feature


def with_class_names(values: list[Any], names: list[str] | None, column: str) -> list[Any]:
    """The names of classes in place of their numbers; a `BadRowError` in place of a value with a number that has none."""
    return values if names is None else [_named(value, names, column) for value in values]


def _named(value: Any, names: list[str], column: str) -> Any:  # noqa: ANN401 -- a name, a list of them, or why there is none
    if isinstance(value, list):
        found = [_named(one, names, column) for one in value]
        return next((one for one in found if isinstance(one, BadRowError)), [one for one in found if one is not None])
    if not isinstance(value, int) or value == -1:  # what `datasets` writes where a row has no label
        return None if value == -1 else value
    is_class = 0 <= value < len(names)
    return names[value] if is_class else BadRowError(f"column {column!r} has a number that is none of its {len(names)} classes")
