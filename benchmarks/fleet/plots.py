"""Plots of the stored curves as SVG files, drawn without a library: they need no browser and are small."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from configuration import Run, Study
from held import curve_of

FOLDER: Final = Path(__file__).parent / "plots"
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
_WIDTH, _HEIGHT, _MARGIN, _LEGEND = 560, 300, 44, 16
_TICKS: Final = 5


def write_plots(sweep: str, configurations: Mapping[str, Run | Study]) -> list[Path]:
    """Accuracy over virtual seconds, on all classes and on the slow sites' classes, one file for each setting (the name's first part).

    The curves of a rule's seeds have the same colour.
    """
    curves = {name: curve for name, one in configurations.items() if isinstance(one, Run) and (curve := curve_of(one))}
    FOLDER.mkdir(exist_ok=True)
    paths = []
    for setting in sorted({name.partition(", ")[0] for name in curves}):
        chosen = {name.partition(", ")[2]: curve for name, curve in curves.items() if name.startswith(f"{setting}, ")}
        fields = {"accuracy": "all classes", "slow_accuracy": "slow sites' classes"}
        for field, what in fields.items():
            if any(point[field] is None for curve in chosen.values() for point in curve):  # a language model's
                continue
            paths.append(FOLDER / f"{sweep}-{setting}-{field}.svg".replace("_", "-"))
            paths[-1].write_text(_svg(f"{setting}: accuracy on {what}", chosen, field), encoding="utf-8")
    return paths


def _svg(title: str, curves: Mapping[str, Sequence[Mapping[str, Any]]], field: str) -> str:
    end = max(point["seconds"] for curve in curves.values() for point in curve)
    rules = list(dict.fromkeys(_rule(name) for name in curves))
    height = _HEIGHT + _LEGEND * len(rules)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="11">']
    parts += ['<rect width="100%" height="100%" fill="white"/>', f'<text x="{_MARGIN}" y="18" font-size="13">{escape(title)}</text>']
    parts += _axes(end)
    colours = {rule: _COLOURS[index % len(_COLOURS)] for index, rule in enumerate(rules)}
    for name, curve in curves.items():
        points = " ".join(f"{_x(point['seconds'], end):.1f},{_y(point[field]):.1f}" for point in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colours[_rule(name)]}" stroke-width="1.5"/>')
    for index, (rule, colour) in enumerate(colours.items()):
        y = _HEIGHT + _LEGEND * index
        parts.append(f'<rect x="{_MARGIN}" y="{y - 4}" width="18" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{_MARGIN + 24}" y="{y}">{escape(rule)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _rule(name: str) -> str:
    """Of a curve named `rule, seed N`."""
    return name.partition(", seed")[0]


def _axes(end: float) -> list[str]:
    parts = []
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        x, y = _x(end * share, end), _y(share)
        parts.append(f'<line x1="{_MARGIN}" y1="{y:.1f}" x2="{_WIDTH - 10}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.1f}</text>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _MARGIN + 16}" text-anchor="middle">{end * share:.0f} s</text>')
    return parts


def _x(seconds: float, end: float) -> float:
    return _MARGIN + (_WIDTH - _MARGIN - 20) * seconds / end


def _y(accuracy: float) -> float:
    return _HEIGHT - _MARGIN - (_HEIGHT - _MARGIN - 30) * accuracy
