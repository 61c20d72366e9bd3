"""Numbers as people read them, for reasons and tables."""

from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024


def size(count: float) -> str:
    """Bytes in three digits, such as `1.35 GiB`: two figures that are compared should not read alike."""
    unit = 0
    while round(count) >= _STEP and unit < len(_UNITS) - 1:
        count, unit = count / _STEP, unit + 1
    decimals = 0 if unit == 0 else max(0, 3 - len(str(int(count))))
    return f"{count:.{decimals}f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds, such as `12 s`, `3 min 20 s` or `1 h 30 min`."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    large, small, unit = (_MINUTE, 1, ("min", "s")) if whole < _HOUR else (_HOUR, _MINUTE, ("h", "min"))
    rest = whole % large // small
    return f"{whole // large} {unit[0]} {rest} {unit[1]}" if rest else f"{whole // large} {unit[0]}"


def percent(share: float) -> str:
    """A share, such as `60 %`; never rounded up to all."""
    return f"{int(100 * share)} %"
