"""The run's small JSON objects, read from its store and parsed.

A trainer's object may be damaged or of another version; the message of the error is written for the user.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from fedpipe_operator.admission import values_of
from fedpipe_operator.errors import UserError
from fedpipe_operator.store import Store
from fedpipe_trainer.contract import Wire

ModelT = TypeVar("ModelT", bound=BaseModel)
WireT = TypeVar("WireT", bound=Wire)

_MOST_VALUES: Final = 2**20
"""Of an object. The largest honest one, the plan of 1,000 sites with 500 weights each, has half as many; 29 MB of the shortest weights took
1.3 GB."""
_MOST_OF_A_PATH: Final = 200
"""Characters: whoever wrote the object chose its keys."""


def decode_object(data: bytes, kind: type[ModelT]) -> ModelT:
    """The value of a JSON object.

    Raises:
        ValueError: the JSON is not valid for `kind`; the message is one line that names the first wrong field.
    """
    if values_of(data) > _MOST_VALUES:
        raise ValueError(f"not a valid {kind.__name__}: it has more than {_MOST_VALUES} values")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = "".join(filter(str.isprintable, ".".join(str(part) for part in first["loc"])))[:_MOST_OF_A_PATH]
        raise ValueError(f"not a valid {kind.__name__}: {where + ': ' if where else ''}{first['msg']}") from error


def read_object(store: Store, key: str, kind: type[WireT], check: Callable[[bytes], None] = lambda _data: None) -> WireT | None:
    """The object with this key, or None if there is none.

    Args:
        store: of the run.
        key: relative to the run.
        kind: of the object.
        check: called with its bytes before they are parsed; what it raises is raised.

    Raises:
        UserError: `ObjectUnreadable`, it is damaged or of another version; or an error of the store.
    """
    data = store.read(key)
    if data is None:
        return None
    check(data)
    try:
        return decode_object(data, kind)
    except ValueError as error:
        raise unreadable_error(key, error) from error


def unreadable_error(key: str, error: ValueError) -> UserError:
    """The error for an object of the operator that cannot be parsed."""
    return UserError("ObjectUnreadable", f"{key} is {error}; use the version of FedPipe that wrote it, or start the run over")


def required_object(store: Store, key: str, kind: type[WireT]) -> WireT:
    """The object with this key, which must exist.

    Raises:
        UserError: `ObjectMissing`; or an error of `read_object`.
    """
    value = read_object(store, key, kind)
    if value is None:
        raise UserError("ObjectMissing", f"{key} is not in the store, but the run refers to it; was it deleted by hand?")
    return value
