"""Predicted against measured: the forecast of each site's plan for a round, and the measurement of its trainer. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Final, NamedTuple

from fedpipe_operator.formatting import byte_unit, excerpt, ratio_text, short_text
from fedpipe_operator.report.figures import Figure
from fedpipe_operator.report.palette import MUTED, site_colour
from fedpipe_operator.report.record import RunRecord
from fedpipe_trainer.contract import Forecast, Measured, Outcome

ROW_PIXELS = 30
GAP_PIXELS = 72
"""Between the upper and the lower panels, for the axis of the upper and the title of the lower ones."""
_MARGIN = {"t": 30, "b": 30}
MAX_NAME = 24
"""Characters of a site's name beside its bars; the hover text has the full name."""


@dataclass(frozen=True)
class ForecastRow:
    """One quantity at one site. `measured` is None when the site sent no update."""

    site: str
    predicted: float
    measured: float | None

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None without both."""
        return self.measured / self.predicted if self.measured is not None and self.predicted else None


class Quantity(NamedTuple):
    """A compared quantity: its title, how to read it from a forecast and from a measurement, and how the rounds are aggregated."""

    title: str
    predicted: Callable[[Forecast], float]
    measured: Callable[[Measured], float]
    over_rounds: Callable[[list[float]], float]
    in_bytes: bool = True


QUANTITIES: Final = (
    Quantity("peak memory", lambda it: it.memory_bytes, lambda it: it.peak_memory_bytes, max),
    Quantity("time per round", lambda it: it.seconds, lambda it: sum(it.seconds.values()), fmean, in_bytes=False),
    Quantity("sent per round", lambda it: it.upload_bytes, lambda it: it.uploaded_bytes, fmean),
    Quantity("received per round", lambda it: it.download_bytes, lambda it: it.downloaded_bytes, fmean),
)


def forecast_rows(record: RunRecord, quantity: Quantity) -> list[ForecastRow]:
    """The quantity for every site that was ever selected, over its completed rounds: the largest peak, the mean of the others."""
    return [row for site in record.sites if (row := _forecast_row(record, site, quantity)) is not None]


def _forecast_row(record: RunRecord, site: str, quantity: Quantity) -> ForecastRow | None:
    """Over the rounds that have both a forecast and a measurement; without such a round, the newest forecast only."""
    forecasts = {
        round_: plan.plans[site].forecast for round_, plan in sorted(record.plans.items()) if site in plan.selected and site in plan.plans
    }
    if not forecasts:
        return None
    measurements = {
        round_: record.updates[round_][site].measured
        for round_ in forecasts
        if site in record.updates.get(round_, {}) and record.updates[round_][site].outcome is Outcome.COMPLETED
    }
    if not measurements:
        return ForecastRow(site, quantity.predicted(forecasts[max(forecasts)]), None)
    predicted = quantity.over_rounds([quantity.predicted(forecasts[round_]) for round_ in measurements])
    return ForecastRow(site, predicted, quantity.over_rounds([quantity.measured(measured) for measured in measurements.values()]))


@dataclass(frozen=True)
class _Panel:
    """One quantity's panel in the figure, which has two columns, and the unit of its numbers."""

    position: int
    title: str
    rows: list[ForecastRow]
    unit: str
    size: float

    @property
    def axis(self) -> str:
        """What plotly appends to `x` and `y` for this panel's axes."""
        return "" if self.position == 0 else str(self.position + 1)

    @property
    def left(self) -> float:
        """Left edge as a fraction of the width."""
        return 0.53 * (self.position % 2)

    @property
    def span(self) -> tuple[float, float]:
        """Bottom and top as fractions of the height, so that a row has the same height in pixels for any number of rows."""
        fraction = ROW_PIXELS * len(self.rows) / (2 * ROW_PIXELS * len(self.rows) + GAP_PIXELS)
        return (1 - fraction, 1.0) if self.position // 2 == 0 else (0.0, fraction)


def forecast_figure(record: RunRecord) -> Figure | None:
    """Four panels with a row per site: the bar is the measurement, the vertical mark the prediction, the text the ratio."""
    panels = [_panel(position, quantity, forecast_rows(record, quantity)) for position, quantity in enumerate(QUANTITIES)]
    if not panels[0].rows:
        return None
    inner = 2 * ROW_PIXELS * len(panels[0].rows) + GAP_PIXELS
    layout: Figure = {"height": inner + _MARGIN["t"] + _MARGIN["b"], "margin": _MARGIN, "showlegend": False}
    layout["annotations"] = [_title(panel) for panel in panels]
    for panel in panels:
        layout |= _axes(panel)
    colours = {site: site_colour(position) for position, site in enumerate(record.sites)}
    return {"data": [trace for panel in panels for trace in (_bars(panel, colours), _marks(panel), _labels(panel))], "layout": layout}


def _panel(position: int, quantity: Quantity, rows: list[ForecastRow]) -> _Panel:
    unit, size = byte_unit(_largest(rows)) if quantity.in_bytes else ("s", 1.0)
    return _Panel(position, quantity.title, rows, unit, size)


def _largest(rows: list[ForecastRow]) -> float:
    return max((max(row.predicted, row.measured or 0) for row in rows), default=0.0)


def _bars(panel: _Panel, colours: dict[str, str]) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": "measured",
        "y": [escape(row.site) for row in panel.rows],
        "x": [None if row.measured is None else row.measured / panel.size for row in panel.rows],
        "width": 0.5,
        "marker": {"color": [colours[row.site] for row in panel.rows]},
        "hovertemplate": f"%{{y}}: %{{x:.4g}} {panel.unit} measured<extra></extra>",
        "xaxis": f"x{panel.axis}",
        "yaxis": f"y{panel.axis}",
    }


def _marks(panel: _Panel) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "predicted",
        "y": [escape(row.site) for row in panel.rows],
        "x": [row.predicted / panel.size for row in panel.rows],
        "marker": {"symbol": "line-ns", "size": 20, "line": {"width": 3, "color": MUTED}},
        "hovertemplate": f"%{{y}}: %{{x:.4g}} {panel.unit} predicted<extra></extra>",
        "xaxis": f"x{panel.axis}",
        "yaxis": f"y{panel.axis}",
    }


def _labels(panel: _Panel) -> Figure:
    """The measured number and the ratio, to the right of both bar and mark."""
    return {
        "type": "scatter",
        "mode": "text",
        "name": "ratio",
        "y": [escape(row.site) for row in panel.rows],
        "x": [max(row.predicted, row.measured or 0) / panel.size for row in panel.rows],
        "text": [_label(row, panel.size) for row in panel.rows],
        "textposition": "middle right",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "xaxis": f"x{panel.axis}",
        "yaxis": f"y{panel.axis}",
    }


def _label(row: ForecastRow, size: float) -> str:
    return "  not measured" if row.measured is None else f"  {short_text(row.measured / size)}  <b>{ratio_text(row.ratio)}</b>"


def _axes(panel: _Panel) -> Figure:
    """The panel's two axes: with space at the right for the text, and site names at the left panels only."""
    limit = (_largest(panel.rows) / panel.size or 1) * 1.45
    x = {"domain": [panel.left, panel.left + 0.47], "range": [0, limit], "anchor": f"y{panel.axis}", "nticks": 5}
    y = {
        "domain": list(panel.span),
        "anchor": f"x{panel.axis}",
        "autorange": "reversed",
        "type": "category",
        "tickvals": [escape(row.site) for row in panel.rows],
        "ticktext": [escape(excerpt(row.site, MAX_NAME)) for row in panel.rows],
        "showticklabels": panel.left == 0,
        "showgrid": False,
        "automargin": True,
    }
    return {f"xaxis{panel.axis}": x, f"yaxis{panel.axis}": y}


def _title(panel: _Panel) -> Figure:
    position = {"xref": "paper", "yref": "paper", "x": panel.left, "y": panel.span[1], "xanchor": "left", "yanchor": "bottom"}
    return position | {"text": f"<b>{panel.title}, {panel.unit}</b>", "showarrow": False, "font": {"size": 13}}
