"""Numbers as people read them, in plans, on the screen and in the report: bytes, seconds, metrics, each in one form. Pure."""

import math
from typing import Final

from fedpipe_operator.api import MetricName

MISSING: Final = "–"
"""Stands where there is no number."""

TITLES: Final[dict[MetricName, str]] = {
    "accuracy": "accuracy",
    "macroF1": "macro-F1",
    "perplexity": "perplexity",
    "bleu": "BLEU",
    "rougeL": "ROUGE-L",
    "slotErrorRate": "slot errors",
    "loss": "loss",
}
"""Every metric's name in a table, in the order tables show them."""

SHARES: Final = frozenset({"accuracy", "macroF1", "slotErrorRate"})
"""Metrics from 0 to 1 that are shown in %."""

_DIGITS: Final[dict[str, int]] = {"bleu": 1, "perplexity": 2}
_BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024
_MINUTE: Final = 60
_HOUR: Final = 3600


def metric_text(metric: MetricName, value: float | None) -> str:
    """A metric's value: shares as `78.4 %`, perplexity `4.21`, BLEU `61.3`, others with three digits."""
    if value is None or not math.isfinite(value):
        return MISSING
    return percent(value) if metric in SHARES else f"{value:.{_DIGITS.get(metric, 3)}f}"


def percent(share: float | None) -> str:
    """A share of 1 in %: one digit, or two significant ones when it is smaller than that."""
    if share is None or not math.isfinite(share):
        return MISSING
    value = 100 * share
    tiny = 0 < abs(value) < 0.1  # noqa: PLR2004 -- what one digit still shows
    return f"{value:.2g} %" if tiny else f"{value:.1f} %"


def whole_percent(share: float) -> str:
    """A share of 1, such as `60 %`; never rounded up to all of it."""
    return f"{int(100 * share)} %"


def byte_unit(largest: float) -> tuple[str, float]:
    """The unit in which this many bytes, rounded, is a number below 1024, and its bytes."""
    power = 0
    while round(largest / _STEP**power) >= _STEP and power < len(_BYTE_UNITS) - 1:
        power += 1
    return _BYTE_UNITS[power], float(_STEP**power)


def bytes_text(count: float | None) -> str:
    """Three digits, such as `1.35 GiB`: two figures that are compared should not read alike."""
    if count is None:
        return MISSING
    unit, size = byte_unit(count)
    decimals = 0 if unit == "B" else max(0, 3 - len(str(int(count / size))))
    return f"{count / size:.{decimals}f} {unit}"


def seconds_text(seconds: float | None) -> str:
    """`8.4 s`, `7 min 12 s`, `2 h 5 min`, `3 min`."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{short(seconds)} s"
    large, small, unit = (_MINUTE, 1, ("min", "s")) if whole < _HOUR else (_HOUR, _MINUTE, ("h", "min"))
    rest = whole % large // small
    return f"{whole // large} {unit[0]} {rest} {unit[1]}" if rest else f"{whole // large} {unit[0]}"


def count_text(count: int | None) -> str:
    """A count with thin spaces between thousands."""
    return MISSING if count is None else f"{count:,}".replace(",", "\u2009")


def ratio_text(ratio: float | None) -> str:
    """`×1.08`: measured over predicted."""
    return MISSING if ratio is None else f"×{ratio:.2f}"


def short(value: float) -> str:
    """One digit after the point below ten, none above."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"  # noqa: PLR2004 -- 9.95 rounds to 10.0


def excerpt(text: str, longest: int) -> str:
    """One line of a text from a site: white space folded, what does not print left out (a terminal would obey it), cut to length."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= longest else f"{line[: longest - 1].rstrip()}…"


def spans(numbers: list[int]) -> str:
    """Whole numbers as spans: `1–3, 5`."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)
