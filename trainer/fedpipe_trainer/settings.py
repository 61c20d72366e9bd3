"""The environment, read once: all that a trainer takes from it, apart from its task."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the machine says, where the task says the rest."""

    cache: Path
    """Where base models are kept from one task to the next (FEDPIPE_CACHE)."""
    memory_limit_bytes: int | None = None
    """What the process may use where no cgroup says it (FEDPIPE_MEMORY_LIMIT_BYTES)."""


def read(environ: Mapping[str, str]) -> Settings:
    """The settings in these environment variables.

    Raises:
        ValueError: a variable has no meaning (the message names it).
    """
    home = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Settings(
        cache=Path(environ.get("FEDPIPE_CACHE") or home / "fedpipe"),
        memory_limit_bytes=_bytes(environ, "FEDPIPE_MEMORY_LIMIT_BYTES"),
    )


def _bytes(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{name} is {text!r}: give a whole number of bytes above 0, or leave it unset")
    return int(text)
