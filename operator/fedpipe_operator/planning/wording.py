"""Numbers as people read them, for reasons and tables."""

from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024


def size(count: float) -> str:
    """Bytes, such as `1.4 GiB`."""
    unit = 0
    while count >= _STEP and unit < len(_UNITS) - 1:
        count, unit = count / _STEP, unit + 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_UNITS[unit]}"  # noqa: PLR2004 -- three digits are enough


def duration(seconds: float) -> str:
    """Seconds, such as `12 s`, `3 min 20 s` or `1 h 30 min`."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return _two(whole // _MINUTE, "min", whole % _MINUTE, "s")
    return _two(whole // _HOUR, "h", whole % _HOUR // _MINUTE, "min")


def _two(first: int, first_unit: str, second: int, second_unit: str) -> str:
    return f"{first} {first_unit} {second} {second_unit}" if second else f"{first} {first_unit}"


def percent(share: float) -> str:
    """A share, such as `60 %`; never rounded up to all."""
    return f"{int(100 * share)} %"
