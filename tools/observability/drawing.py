"""Pictures of the dashboards as SVG, drawn from stored answers of a Prometheus without Grafana and without a browser."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import zip_longest
from typing import Final

from observability.answers import Series
from observability.dashboards import as_json
from observability.formats import shown
from observability.model import Dashboard, Kind, Panel

Answers = Sequence[Sequence[Series]]
"""The series of each query of a panel."""

_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""
_COLUMN, _LINE, _PAD, _TEXT = 50, 34, 8, 14
_LETTER: Final = 6.4
"""The width of a letter; few fonts have wider ones at this size."""
_LEGEND_ROWS: Final = 4
_NAMES_OF_BARS: Final = 0.6
"""The share of a panel's width that they may take."""
_TICKS: Final = 3
_GREY, _LIGHT = "#666666", "#dddddd"


def draw(one: Dashboard, answers: Mapping[str, Answers]) -> str:
    """The picture of a dashboard, with the answers to its panels by their titles."""
    placed = json.loads(as_json(one))["panels"]
    panels = {panel.title: panel for panel in one.panels()}
    height = max(place["gridPos"]["y"] + place["gridPos"]["h"] for place in placed) * _LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * _COLUMN} {height}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#f4f5f5"/>',
    ]
    for place in placed:
        grid = place["gridPos"]
        x, y, width, height = grid["x"] * _COLUMN, grid["y"] * _LINE, grid["w"] * _COLUMN, grid["h"] * _LINE
        parts.append(f'<g transform="translate({x},{y})">')
        if place["type"] == "row":
            parts.append(_text(_PAD, 22, place["title"], font_size="14", font_weight="bold"))
        else:
            parts += [f'<rect x="2" y="2" width="{width - 4}" height="{height - 4}" fill="white" stroke="{_LIGHT}"/>']
            parts += [_text(_PAD, 18, place["title"], font_weight="bold")]
            parts += _body(panels[place["title"]], answers[place["title"]], width, height)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _body(panel: Panel, answers: Answers, width: int, height: int) -> Iterator[str]:
    if not any(answers):
        lines = textwrap.wrap(f"No data: {panel.may_be_empty}" if panel.may_be_empty else "No data", int((width - 2 * _PAD) / _LETTER))
        for index, line in enumerate(lines):
            y = height / 2 + _TEXT * (index - (len(lines) - 1) / 2)
            yield _text(width / 2, y, line, text_anchor="middle", fill=_GREY)
        return
    match panel.kind:
        case Kind.LINES:
            yield from _lines(panel, answers, width, height)
        case Kind.VALUES:
            yield from _values(panel, answers, width, height)
        case Kind.BARS:
            yield from _bars(panel, answers, width, height)
        case Kind.TABLE:
            yield from _table(panel, answers, width, height)


def _named(panel: Panel, answers: Answers) -> list[tuple[str, Series]]:
    """The series with the names that Grafana's legend gives them."""
    return [
        named
        for query, series in zip(panel.queries, answers, strict=True)
        for named in sorted(((_legend(query.legend, one.labels), one) for one in series), key=lambda named: named[0])
    ]


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def _lines(panel: Panel, answers: Answers, width: int, height: int) -> Iterator[str]:
    named = _named(panel, answers)
    rows = min(len(named), _LEGEND_ROWS)
    values = [value for _, one in named for _, value in one.points] + [step.value for step in panel.thresholds] + [0.0]
    highest, end = max(values) or 1.0, max(at for _, one in named for at, _ in one.points) or 1.0
    scale = [shown(highest * tick / _TICKS, panel.unit) for tick in range(_TICKS + 1)]
    left, right, top, bottom = 2 * _PAD + max(map(_width, scale)), width - 14, 30, height - 30 - _TEXT * rows

    def place(at: float, value: float) -> str:
        return f"{left + (right - left) * at / end:.1f},{bottom - (bottom - top) * value / highest:.1f}"

    for tick in range(_TICKS + 1):
        y = bottom - (bottom - top) * tick / _TICKS
        yield f'<line x1="{left:.0f}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_LIGHT}"/>'
        yield _text(left - 5, y + 4, scale[tick], text_anchor="end", fill=_GREY)
        anchor = "end" if tick == _TICKS else "middle"
        yield _text(left + (right - left) * tick / _TICKS, bottom + 13, f"{end * tick / _TICKS:.0f} s", text_anchor=anchor, fill=_GREY)
    for step in panel.thresholds:
        yield f'<polyline points="{place(0, step.value)} {place(end, step.value)}" stroke="{step.colour}" stroke-dasharray="4"/>'
    for index, (name, one) in enumerate(named):
        colour = _COLOURS[index % len(_COLOURS)]
        points = " ".join(place(at, value) for at, value in one.points)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        if index < rows:
            more = f" (and {len(named) - rows} more)" if index == rows - 1 and len(named) > rows else ""
            y = bottom + 28 + _TEXT * index
            yield f'<rect x="{_PAD}" y="{y - 5}" width="14" height="3" fill="{colour}"/>'
            value = f": {shown(one.points[-1][1], panel.unit)}{more}"
            yield _text(_PAD + 20, y, _cut(name, width - 2 * _PAD - 20 - _width(value)) + value)


def _values(panel: Panel, answers: Answers, width: int, height: int) -> Iterator[str]:
    named = _named(panel, answers)
    for index, (name, one) in enumerate(named):
        x = width * (index + 0.5) / len(named)
        value = one.points[-1][1]
        colour = next((step.colour for step in reversed(panel.thresholds) if value >= step.value), "green")
        yield _text(x, height / 2 + 16, shown(value, panel.unit), font_size="28", text_anchor="middle", fill=colour)
        yield _text(x, height - 14, name, text_anchor="middle", fill=_GREY)


def _bars(panel: Panel, answers: Answers, width: int, height: int) -> Iterator[str]:
    named = _named(panel, answers)[: (height - 36) // 20]
    highest = max(one.points[-1][1] for _, one in named) or 1.0
    left = min(width * _NAMES_OF_BARS, 2 * _PAD + max(_width(name) for name, _ in named))
    for index, (name, one) in enumerate(named):
        y, value = 34 + 20 * index, one.points[-1][1]
        yield _text(left - 6, y + 11, _cut(name, left - 6 - _PAD), text_anchor="end")
        yield f'<rect x="{left:.0f}" y="{y}" width="{(width - left - 70) * value / highest:.1f}" height="14" fill="{_COLOURS[0]}"/>'
        yield _text(width - 12, y + 11, shown(value, panel.unit), text_anchor="end")


def _table(panel: Panel, answers: Answers, width: int, height: int) -> Iterator[str]:
    keys = list(dict.fromkeys(name for series in answers for one in series for name in sorted(one.labels)))
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for column, series in enumerate(answers):
        for one in series:
            row = rows.setdefault(tuple(one.labels.get(name, "") for name in keys), {})
            row[column] = shown(one.points[-1][1], panel.unit)
    lines = [[*keys, *(query.legend for query in panel.queries)]]
    lines += [[*labels, *(cells.get(column, "") for column in range(len(answers)))] for labels, cells in sorted(rows.items())]
    shown_lines = lines[: (height - 30) // 16]
    widths = [2 * _PAD + max(_width(line[column]) for line in shown_lines) for column in range(len(lines[0]))]
    share = min(1.0, (width - _PAD) / sum(widths))
    starts = [_PAD + share * sum(widths[:column]) for column in range(len(widths))]
    for index, (line, weight) in enumerate(zip_longest(shown_lines, ["bold"], fillvalue="normal")):
        for start, cell, space in zip(starts, line, widths, strict=True):
            yield _text(start, 36 + 16 * index, _cut(cell, share * space - _PAD / 2), font_weight=str(weight))


def _width(text: str) -> float:
    return _LETTER * len(text)


def _cut(text: str, width: float) -> str:
    """As much of the text as has this width."""
    return text if _width(text) <= width else text[: max(0, int(width / _LETTER) - 1)] + "…"


def _text(x: float, y: float, text: str, **style: str) -> str:
    """A text; the style's names have underscores in place of hyphens."""
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
    return f'<text x="{x:.0f}" y="{y:.0f}"{attributes}>{escape(text)}</text>'
