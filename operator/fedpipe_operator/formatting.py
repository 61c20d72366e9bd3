"""Formatting of numbers and texts for people, in plans, in the terminal and in the report: each kind has one form. Pure."""

import math
from typing import Final

from fedpipe_operator.api import MetricName

MISSING: Final = "–"
"""Shown in place of a missing number."""

METRIC_TITLES: Final[dict[MetricName, str]] = {
    "accuracy": "accuracy",
    "macroF1": "macro-F1",
    "microF1": "micro-F1",
    "mse": "squared error",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "perplexity": "perplexity",
    "bleu": "BLEU",
    "rougeL": "ROUGE-L",
    "slotErrorRate": "slot errors",
    "exactMatch": "exact match",
    "tokenF1": "token F1",
    "preferenceAccuracy": "preference accuracy",
    "rewardMargin": "reward margin",
    "loss": "loss",
}
"""By metric: its title in a table, in the order of the tables."""

FRACTION_METRICS: Final = frozenset({"accuracy", "macroF1", "microF1", "slotErrorRate", "exactMatch", "tokenF1", "preferenceAccuracy"})
"""Metrics from 0 to 1, which are shown in %."""

_DECIMALS: Final[dict[str, int]] = {"bleu": 1, "perplexity": 2}
_BYTE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP: Final = 1024
_BIT_UNITS: Final = ("bit/s", "kbit/s", "Mbit/s", "Gbit/s")
_THOUSAND: Final = 1000
_SHORT: Final = 0.05
_MINUTE: Final = 60
_HOUR: Final = 3600


def metric_text(metric: MetricName, value: float | None) -> str:
    """A metric's value: fractions as `78.4 %`, perplexity `4.21`, BLEU `61.3`, others with three decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    return percent(value) if metric in FRACTION_METRICS else f"{value:.{_DECIMALS.get(metric, 3)}f}"


def percent(fraction: float | None) -> str:
    """A fraction in %: with one decimal, or with two significant digits when it is below 0.1 %."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    value = 100 * fraction
    tiny = 0 < abs(value) < 0.1  # noqa: PLR2004 -- the smallest value that one decimal shows
    return f"{value:.2g} %" if tiny else f"{value:.1f} %"


def whole_percent(fraction: float) -> str:
    """A fraction rounded down to whole percent, such as `60 %`, so that only 1 becomes `100 %`."""
    return f"{int(100 * fraction)} %"


def byte_unit(largest: float) -> tuple[str, float]:
    """The unit in which this number of bytes, rounded, is below 1024, and the bytes of that unit."""
    power = 0
    while round(largest / _STEP**power) >= _STEP and power < len(_BYTE_UNITS) - 1:
        power += 1
    return _BYTE_UNITS[power], float(_STEP**power)


def bytes_text(count: float | None) -> str:
    """Bytes with three digits, such as `1.35 GiB`, so that two figures that are compared do not look equal."""
    if count is None:
        return MISSING
    unit, size = byte_unit(count)
    decimals = 0 if unit == "B" else max(0, 3 - len(str(int(count / size))))
    return f"{count / size:.{decimals}f} {unit}"


def rate_text(bits_per_second: float | None) -> str:
    """A bandwidth with three digits, such as `94.2 Mbit/s` or `25 bit/s`."""
    if bits_per_second is None:
        return MISSING
    rounded = float(f"{bits_per_second:.3g}")
    power = sum(rounded >= _THOUSAND ** (index + 1) for index in range(len(_BIT_UNITS) - 1))
    return f"{rounded / _THOUSAND**power:.3g} {_BIT_UNITS[power]}"


def number_text(value: float | None) -> str:
    """A number with three digits, such as `0.412` or `21 400`; of a large one all digits before the point."""
    if value is None:
        return MISSING
    return f"{value:.3g}" if abs(value) < _THOUSAND else count_text(round(value))


def seconds_text(seconds: float | None) -> str:
    """`8.4 s`, `7 min 12 s`, `2 h 5 min`, `3 min`; `12 ms` of what would be 0.0 s."""
    if seconds is None:
        return MISSING
    if 0 < seconds < _SHORT:
        return f"{max(1, round(1000 * seconds))} ms"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{short_text(seconds)} s"
    large, small, unit = (_MINUTE, 1, ("min", "s")) if whole < _HOUR else (_HOUR, _MINUTE, ("h", "min"))
    rest = whole % large // small
    return f"{whole // large} {unit[0]} {rest} {unit[1]}" if rest else f"{whole // large} {unit[0]}"


def count_text(count: int | None) -> str:
    """A count with thin spaces between the thousands."""
    return MISSING if count is None else f"{count:,}".replace(",", "\u2009")


def counted(number: int, noun: str) -> str:
    """A number of things: `1 step`, `2 steps`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def passes_text(passes: float) -> str:
    """A number of passes over something: `0.38 passes`, `1 pass`."""
    number = f"{passes:.2g}"
    return f"{number} pass{'' if number == '1' else 'es'}"


def ratio_text(ratio: float | None) -> str:
    """A ratio of measured to predicted, such as `×1.08`."""
    return MISSING if ratio is None else f"×{ratio:.2f}"


def signed_text(value: float | None) -> str:
    """A difference with its sign and three decimals, such as `−0.012`."""
    return MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def short_text(value: float) -> str:
    """A number with one decimal below ten, none above."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"  # noqa: PLR2004 -- 9.95 rounds to 10.0


def excerpt(text: str, limit: int) -> str:
    """A text from a site as one line of at most `limit` characters, without unprintable ones (terminal control codes)."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"


def ranges_text(numbers: list[int]) -> str:
    """Whole numbers as ranges: `1–3, 5`."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in ranges)
