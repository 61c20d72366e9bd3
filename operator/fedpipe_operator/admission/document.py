"""The bytes of a result as a value of its kind: bounds on size, depth, numbers and text that hold for every kind."""

import json
import math
import sys
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from fedpipe_operator.admission.refusal import RefusalReason, RefusedError
from fedpipe_trainer.contract import Wire, does_more_than_show

WireT = TypeVar("WireT", bound=Wire)

MAX_RESULT_BYTES: Final = 2**20
"""Of a result, but an update's: `results.max_update_bytes`. A profile has some 250 bytes for each target weight."""
_BYTES_OF_A_VALUE: Final = 6
"""Of JSON, at least, in an honest result: a number and a comma."""
MOST_VALUES: Final = MAX_RESULT_BYTES // _BYTES_OF_A_VALUE
"""Of a result, but an update's: `results.most_update_values`."""
_VERSION: Final = "does its trainer have the version of this operator?"
_MAX_DEPTH: Final = 16
"""A result has objects in objects five deep."""
_MAX_DIGITS: Final = 24
_MAX_TEXT: Final = 8192
_MAX_NAME: Final = 1024
_MESSAGES: Final = frozenset({"message", "problem", "cacheProblem", "text", "expected", "predicted", "unsupported"})
"""Fields that are shown and never compared: they are cleaned, not refused."""


def parse(data: bytes, kind: type[WireT], *, at_most: int, most_values: int = MOST_VALUES, what: str) -> WireT:
    """The value of this kind, all of whose numbers are finite, and whose texts show nothing but themselves.

    Args:
        data: JSON in UTF-8.
        kind: of the value.
        at_most: bytes.
        most_values: of JSON, objects and arrays included.
        what: the object, for messages.

    Raises:
        RefusedError: `TooLarge`, `Unreadable` or `Implausible`.
    """
    if len(data) > at_most:
        raise RefusedError(RefusalReason.TOO_LARGE, f"{what} has {len(data)} bytes, expected at most {at_most}")
    if values_of(data) > most_values:
        raise RefusedError(RefusalReason.UNREADABLE, f"{what} has more than {most_values} values; {_VERSION}")
    value = _cleaned(_json(data, what), what)
    if not isinstance(value, dict):
        raise RefusedError(RefusalReason.UNREADABLE, f"{what} is no object of JSON; {_VERSION}")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problem = _first_problem(error)
        raise RefusedError(RefusalReason.UNREADABLE, f"{what} is not a valid {kind.__name__}: {problem}; {_VERSION}") from None


def values_of(data: bytes) -> int:
    """How many values this JSON has at most, counted before any is made: as objects, 33 MB of small ones take 5 GB."""
    return 1 + sum(map(data.count, (b",", b"[", b"{")))  # besides the whole, each value follows one of these characters


def clean_message(text: str) -> str:
    """A message that is shown and never compared: its beginning, without characters that do more than show."""
    shown = text[:_MAX_TEXT]
    if not does_more_than_show(shown):
        return shown
    return "".join("\N{REPLACEMENT CHARACTER}" if does_more_than_show(one) else one for one in shown)


def _json(data: bytes, what: str) -> Any:  # noqa: ANN401 -- any JSON
    try:
        return json.loads(data, parse_constant=_no_constant, parse_int=_integer, parse_float=_number, object_pairs_hook=_object)
    except RefusedError:
        raise
    except (ValueError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else "not JSON in UTF-8"
        raise RefusedError(RefusalReason.UNREADABLE, f"{what} is {problem}; {_VERSION}") from None


def _no_constant(name: str) -> Any:  # noqa: ANN401 -- json's hook
    raise RefusedError(RefusalReason.IMPLAUSIBLE, f"a result has the number {name}, expected finite numbers")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"a result has an integer of {len(text)} digits, expected at most {_MAX_DIGITS}")
    return int(text)


def _number(text: str) -> float:
    """Finite, and zero or not so small that its inverse is infinite."""
    value = float(text) if len(text) <= _MAX_NAME else math.inf
    if not math.isfinite(value) or 0 < abs(value) < sys.float_info.min:
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"a result has the number {text[:_MAX_DIGITS]}, expected finite numbers")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RefusedError(RefusalReason.UNREADABLE, "a result names a field twice")
    return found


def _cleaned(value: Any, what: str, name: str = "", depth: int = 0) -> Any:  # noqa: ANN401 -- any JSON
    """The value of the field of this name, clean: names (keys, labels, identities) must be clean already, since they are compared."""
    if depth > _MAX_DEPTH:
        raise RefusedError(RefusalReason.UNREADABLE, f"{what} is nested too deeply; {_VERSION}")
    if isinstance(value, dict):
        for key in value:
            _require_clean(key, _MAX_NAME, what)
        return {key: _cleaned(one, what, name if name in _MESSAGES else key, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [_cleaned(one, what, name, depth + 1) for one in value]
    if isinstance(value, str):
        return clean_message(value) if name in _MESSAGES else _require_clean(value, _MAX_TEXT, what)
    return value


def _first_problem(error: ValidationError) -> str:
    """The first wrong field, and what kind of fault it is. Pydantic's sentence may quote the value, which no message does."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(f"`{part}`" if "." in str(part) else str(part) for part in first["loc"])
    return f"{''.join(filter(str.isprintable, where))[:_MAX_NAME]}: {first['type'].replace('_', ' ')}"


def _require_clean(text: str, most: int, what: str) -> str:
    if len(text) > most:
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what} has a text of {len(text)} characters, expected at most {most}")
    if does_more_than_show(text):
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what} has a text with control characters: remove them from labels and names")
    return text
