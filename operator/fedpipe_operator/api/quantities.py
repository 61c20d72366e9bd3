"""Kubernetes quantities and Go durations as users write them, and their parsers."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Field

QUANTITY_PATTERN = r"^(0*[1-9][0-9]*(\.[0-9]+)?|0+\.0*[1-9][0-9]*)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"
DURATION_PATTERN = r"^([1-9][0-9]*h([0-9]+m)?([0-9]+s)?|[1-9][0-9]*m([0-9]+s)?|[1-9][0-9]*s)$"
_FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTP", start=1)
}
_SECONDS = {"h": 3600, "m": 60, "s": 1}


def _as_string(value: object) -> object:
    """YAML reads `cpu: 8` as an integer. Like Kubernetes, accept an integer or a string here, and no fraction."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Quantity = Annotated[str, Field(pattern=QUANTITY_PATTERN, max_length=32), BeforeValidator(_as_string)]
"""A Kubernetes quantity above 0 such as `24Gi`, `8` or `500m`."""

Duration = Annotated[str, Field(pattern=DURATION_PATTERN, max_length=32)]
"""A duration above 0 such as `90s`, `30m` or `1h30m`."""


def parse_quantity(quantity: str) -> float:
    """The number that a quantity denotes: bytes, cores, or bits per second, depending on the field."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    if match is None or match[2] not in _FACTORS:
        raise ValueError(f"{quantity!r} is not a quantity: write a number with an optional suffix such as 24Gi or 100M")
    # Divided by 1000, not multiplied by 0.001, so that 1900m equals 1.9 exactly.
    return float(match[1]) / 1000 if match[2] == "m" else float(match[1]) * _FACTORS[match[2]]


def parse_duration(duration: str) -> float:
    """The duration in seconds."""
    return float(sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9]+)([hms])", duration)))
