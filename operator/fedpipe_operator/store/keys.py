"""Which keys a store takes: relative, and unable to leave the store. Pure.

A name that begins with a dot is none: it is a file somebody is still writing, to be renamed when it is whole.
"""

from fedpipe_operator.errors import UserError

LONGEST_KEY = 1024
"""Bytes; S3's own limit."""


def checked_key(key: str) -> str:
    """The key as given, once it is known to stay inside the store.

    Raises:
        UserError: `BadKey`, the key is empty, absolute, too long, or has an empty part or one that begins with a dot.
    """
    if not is_whole(key) or "" in key.split("/") or not key.isprintable() or "\\" in key or len(key.encode()) > LONGEST_KEY:
        raise UserError("BadKey", f"{key!r} is no key of this store: use names divided by '/', none of them empty or beginning with a dot")
    return key


def checked_prefix(prefix: str) -> str:
    """Likewise for a folder: "" is the whole store, and a closing '/' means nothing."""
    return checked_key(prefix.removesuffix("/")) if prefix else ""


def is_within(key: str, prefix: str) -> bool:
    """Whether the key is the prefix itself or lies in the folder of that name (`round/1` does not hold `round/10`)."""
    return not prefix or key == prefix or key.startswith(prefix + "/")


def is_whole(key: str) -> bool:
    """Whether the key is an object's, not that of an unfinished one."""
    return not any(part.startswith(".") for part in key.split("/"))
