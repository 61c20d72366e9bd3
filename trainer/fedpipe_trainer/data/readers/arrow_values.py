"""Values of Python from Arrow arrays: texts, numbers, booleans, and lists and objects of them, as a file of JSON has them.

Inside lists and objects, dates and times become their text as of ISO 8601, decimal numbers become numbers, and maps objects. What JSON has
no value for, such as the bytes of an image, is left out, so that a conversation is read whatever else its turns have.
"""

from collections.abc import Iterable
from decimal import Decimal
from itertools import islice
from typing import Any, Final

import pyarrow as pa
from pyarrow import compute

from fedpipe_trainer.data.readers.record import BadRowError

_OUT_OF_RANGE: Final = "<"
"""How Arrow's text of a time begins that no calendar has."""
_t: Final = pa.types


def is_readable(kind: pa.DataType) -> bool:
    """Whether a column of this type may have texts or labels, or lists and objects of them."""
    return _is_value(kind) or (_t.is_nested(kind) and _has_values(kind)) or ((inner := _inner(kind)) is not None and is_readable(inner))


def type_named(kind: pa.DataType) -> str:
    """The type in a word of ours: Arrow's own description may quote the file."""
    if _t.is_temporal(kind):
        return "a date or a time"
    if _t.is_binary(kind) or _t.is_large_binary(kind) or _t.is_fixed_size_binary(kind) or _t.is_binary_view(kind):
        return "binary"
    return "nested" if _t.is_nested(kind) else "of a type without text"


def values_of(array: pa.Array) -> list[Any]:
    """The values of an array of a type that `is_readable`: a `BadRowError` for a text that is not UTF-8."""
    kind = array.type
    if _t.is_dictionary(kind):
        known = values_of(array.dictionary)
        return [None if index is None else known[index] for index in array.indices.to_pylist()]
    if _inner(kind) is not None:
        return values_of(_plain(array))
    nested = _objects if _t.is_struct(kind) else _maps if _t.is_map(kind) else _lists if _is_list(kind) else _scalars
    return nested(array)


def _plain(array: pa.Array) -> pa.Array:
    """The array of the values that this one is another form of."""
    if isinstance(array.type, pa.BaseExtensionType):
        return array.storage
    return array.dictionary_decode() if _t.is_dictionary(array.type) else compute.run_end_decode(array)


def _scalars(array: pa.Array) -> list[Any]:
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return [_cell(value) for value in array]


def _cell(value: pa.Scalar) -> Any:  # noqa: ANN401 -- any value
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return BadRowError("it is not UTF-8: write the file anew, with texts in UTF-8")


def _is_value(kind: pa.DataType) -> bool:
    return bool(
        _is_text(kind) or _t.is_integer(kind) or _t.is_floating(kind) or _t.is_decimal(kind) or _t.is_boolean(kind) or _t.is_null(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(_t.is_string(kind) or _t.is_large_string(kind) or _t.is_string_view(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(_t.is_timestamp(kind) or _t.is_date(kind) or _t.is_time(kind))


def _is_list(kind: pa.DataType) -> bool:
    is_view = _t.is_list_view(kind) or _t.is_large_list_view(kind)
    return bool(_t.is_list(kind) or _t.is_large_list(kind) or _t.is_fixed_size_list(kind) or is_view)


def _inner(kind: pa.DataType) -> pa.DataType | None:
    """The type of the values that this one is another form of."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return kind.value_type if _t.is_dictionary(kind) or _t.is_run_end_encoded(kind) else None


def _has_values(kind: pa.DataType) -> bool:
    """Whether JSON has values for the type, inside of a list or an object."""
    if (inner := _inner(kind)) is not None:
        return _has_values(inner)
    if _is_list(kind):
        return _has_values(kind.value_type)
    if _t.is_map(kind):
        return _is_text(kind.key_type) and _has_values(kind.item_type)
    if _t.is_struct(kind):
        return not kind.num_fields or any(_has_values(field.type) for field in kind)
    return _is_value(kind) or _is_time(kind)


def _inside(array: pa.Array) -> list[Any]:
    """As `values_of`, inside of a list or an object."""
    kind = array.type
    if _is_time(kind):
        return _times(array)
    if _t.is_decimal(kind):
        return [_number(value) for value in array.to_pylist()]
    return values_of(array) if _inner(kind) is None else _inside(_plain(array))


def _times(array: pa.Array) -> list[str | None]:
    try:
        texts = array.cast(pa.string()).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # an unknown time zone
        return [None] * len(array)
    return [None if text is None or text.startswith(_OUT_OF_RANGE) else text.replace(" ", "T", 1) for text in texts]


def _number(value: Decimal | None) -> int | float | None:
    return value if value is None else int(value) if value == value.to_integral_value() else float(value)


def _objects(array: pa.StructArray) -> list[Any]:
    fields = {at: field.name for at, field in enumerate(array.type) if _has_values(field.type)}
    columns = [_inside(array.field(at)) for at in fields]
    rows = zip(*columns, strict=True) if columns else iter([()] * len(array))
    made = (_whole(dict(zip(fields.values(), row, strict=True)), row) for row in rows)
    return [one if is_there else None for is_there, one in zip(array.is_valid().to_pylist(), made, strict=True)]


def _lists(array: pa.Array) -> list[Any]:
    elements = iter(_inside(array.flatten()))
    lengths = compute.list_value_length(array).to_pylist()
    found = (None if length is None else list(islice(elements, length)) for length in lengths)
    return [one and _whole(one, one) for one in found]


def _maps(array: pa.MapArray) -> list[Any]:
    offsets = array.offsets.to_pylist()
    first, last = offsets[0], offsets[-1]
    pairs = list(zip(values_of(array.keys[first:last]), _inside(array.items[first:last]), strict=True))
    spans = zip(array.is_valid().to_pylist(), offsets, offsets[1:], strict=False)
    found = (pairs[start - first : end - first] if is_there else None for is_there, start, end in spans)
    return [None if one is None else _whole(dict(one), [part for pair in one for part in pair]) for one in found]


def _whole(value: Any, parts: Iterable[Any]) -> Any:  # noqa: ANN401 -- any value
    """The value, or why one of its parts cannot be read."""
    return next((part for part in parts if isinstance(part, BadRowError)), value)
