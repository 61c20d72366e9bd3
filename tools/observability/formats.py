"""Values as the units of the panels show them."""

from typing import Final

from grafana_foundation_sdk.models import units

_SUFFIXES: Final = {units.Seconds: " s", units.Joule: " J", units.RequestsPerSecond: " req/s", units.Mebibytes: " MiB", units.Percent: " %"}
_BINARY: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_KILO: Final = 1024
_LONG: Final = 1e9


def shown(value: float, unit: str) -> str:
    """The value in its unit, with three digits."""
    if unit == units.BytesIEC:
        return _bytes(value)
    if unit == units.PercentUnit:
        return f"{100 * value:.3g} %"
    return f"{_plain(value)}{_SUFFIXES.get(unit, '')}"


def _plain(value: float) -> str:
    digits = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in digits and abs(value) < _LONG else digits


def _bytes(value: float) -> str:
    power = 0
    while abs(value) >= _KILO and power < len(_BINARY) - 1:
        value, power = value / _KILO, power + 1
    return f"{_plain(value)} {_BINARY[power]}"
