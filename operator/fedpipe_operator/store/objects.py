"""The run's small JSON objects, read from its store: the one place where bytes become values.

What a site's trainer wrote may be damaged or of another version; the text of the error is fit for the one who reads it.
"""

from typing import TypeVar

from pydantic import ValidationError

from fedpipe_operator.errors import UserError
from fedpipe_operator.store import Store
from fedpipe_trainer.contract import Wire

WireT = TypeVar("WireT", bound=Wire)


def parsed(data: bytes, kind: type[WireT]) -> WireT:
    """The value that these bytes are.

    Raises:
        ValueError: they are not, in one line that names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"no {kind.__name__}: {where + ': ' if where else ''}{first['msg']}") from error


def read_object(store: Store, key: str, kind: type[WireT]) -> WireT | None:
    """The object of this key, None if there is none.

    Raises:
        UserError: `ObjectUnreadable`, it is damaged or of another version; or what the store raises.
    """
    data = store.read(key)
    try:
        return None if data is None else parsed(data, kind)
    except ValueError as error:
        raise unreadable(key, error) from error


def unreadable(key: str, error: ValueError) -> UserError:
    """What a person is told of an object of ours that is none of its kind."""
    return UserError("ObjectUnreadable", f"{key} is {error}; go on with the version that wrote it, or start over")


def required_object(store: Store, key: str, kind: type[WireT]) -> WireT:
    """The object of this key, which must be there.

    Raises:
        UserError: `ObjectMissing`, and what `read_object` raises.
    """
    value = read_object(store, key, kind)
    if value is None:
        raise UserError("ObjectMissing", f"{key} is not in the store, though the run refers to it: was the store changed by hand?")
    return value
