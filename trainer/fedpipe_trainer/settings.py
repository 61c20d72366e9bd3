"""The trainer's settings from environment variables, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

LogFormat = Literal["json", "plain"]


@dataclass(frozen=True)
class Settings:
    """Settings of the machine; everything else is in the task."""

    cache: Path
    """Folder where base models and activations are kept from one task to the next (FEDPIPE_CACHE)."""
    memory_limit_bytes: int | None = None
    """Memory limit of the process, also where a cgroup enforces it: the trainer keeps within it by itself (FEDPIPE_MEMORY_LIMIT_BYTES)."""
    activation_cache_bytes: int | None = None
    """Bytes of activations that `cache` may hold (FEDPIPE_ACTIVATION_CACHE_BYTES). None: half of the free space of its volume."""
    accelerator: str = ""
    """The resource by which the pod claims an accelerator, such as `nvidia.com/gpu` (FEDPIPE_ACCELERATOR); empty: it claims none."""
    log_format: LogFormat = "plain"
    """`json` in pods, whose logs are collected with the operator's (FEDPIPE_LOG_FORMAT)."""


def read(environ: Mapping[str, str]) -> Settings:
    """Read the settings from these environment variables.

    Raises:
        ValueError: a variable has an invalid value (the message names the variable).
    """
    cache_home = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Settings(
        cache=Path(environ.get("FEDPIPE_CACHE") or cache_home / "fedpipe"),
        memory_limit_bytes=_bytes(environ, "FEDPIPE_MEMORY_LIMIT_BYTES"),
        activation_cache_bytes=_bytes(environ, "FEDPIPE_ACTIVATION_CACHE_BYTES"),
        accelerator=environ.get("FEDPIPE_ACCELERATOR", ""),
        log_format=_log_format(environ.get("FEDPIPE_LOG_FORMAT") or Settings.log_format),
    )


def _bytes(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{name} is {text!r}: set it to a whole number of bytes above 0, or leave it unset")
    return int(text)


def _log_format(text: str) -> LogFormat:
    for one in get_args(LogFormat):
        if text == one:
            found: LogFormat = one
            return found
    raise ValueError(f"FEDPIPE_LOG_FORMAT is {text!r}: set it to json or plain, or leave it unset, for plain")
