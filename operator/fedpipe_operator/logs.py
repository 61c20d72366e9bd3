"""The operator's log: each line says what it is about in fields of its own, and no line has a secret.

A reconcile binds its fields once (`context`), so that every line that is written within it has them, whoever writes it; a line adds what it
alone is about by `extra`. As JSON each field is one of the object, in the plain format they follow the message.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final

from fedpipe_trainer.contract import redacted

FIELDS: Final = ("namespace", "run", "uid", "generation", "round", "site", "attempt", "reconcile")
"""What a line may be about; `reconcile` is an id that all lines of one reconcile share."""

_BOUND: ContextVar[Mapping[str, object]] = ContextVar("bound", default={})  # noqa: B039 -- it is replaced, and never changed


@contextmanager
def context(**fields: object) -> Iterator[None]:
    """Have every line that is written in this context be about this, too."""
    token = _BOUND.set(_with(fields))
    try:
        yield
    finally:
        _BOUND.reset(token)


def bind(**fields: object) -> None:
    """The same until the current task of the event loop ends."""
    _BOUND.set(_with(fields))


def bound() -> Mapping[str, object]:
    """What the lines that are written here are about."""
    return _BOUND.get()


def run_fields(body: Mapping[str, Any]) -> dict[str, object]:
    """What the lines about a run's object are about."""
    meta, status = body["metadata"], body.get("status") or {}
    fields = {"namespace": meta["namespace"], "run": meta["name"], "uid": meta["uid"], "generation": meta.get("generation")}
    return fields | {"round": status.get("round") or None}


class JsonFormatter(logging.Formatter):
    """A line is an object of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        document = {
            "timestamp": _time(record),
            "severity": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_about(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return redacted(json.dumps(document, ensure_ascii=False, default=str))


class PlainFormatter(logging.Formatter):
    """A line is read by people: time, level, message, and what it is about. A traceback follows in lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        # A message may quote what somebody else wrote: it must not look like further lines.
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        about = "".join(f" {name}={value}" for name, value in _about(record).items())
        line = f"{_time(record)} {record.levelname:<7} {message}{' |' if about else ''}{about}"
        return redacted(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


def configure(log_format: str) -> None:
    """Write the log of this process to standard error, as `json` or `plain`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # kopf's lines about each event of each object and of each probe, and asyncio's about slow callbacks.
    for chatty in ("kopf.objects", "kopf.activities", "aiohttp.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _with(fields: Mapping[str, object]) -> Mapping[str, object]:
    return {**_BOUND.get(), **{name: value for name, value in fields.items() if value is not None}}


def _about(record: logging.LogRecord) -> dict[str, object]:
    """The fields of a line, in their order: its own before those of its context."""
    bound = _BOUND.get()
    found = {name: getattr(record, name, None) if hasattr(record, name) else bound.get(name) for name in FIELDS}
    return {name: value for name, value in found.items() if value is not None}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
