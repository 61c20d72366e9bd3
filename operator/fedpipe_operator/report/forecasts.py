"""Predicted against measured: what each site's plan said a round would need, and what its trainer reported. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Final, NamedTuple

from fedpipe_operator.report.figures import Figure
from fedpipe_operator.report.palette import MUTED, site_colour
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.units import byte_unit, excerpt, ratio_text, short
from fedpipe_trainer.contract import Forecast, Measured, Outcome

ROW_PIXELS = 30
GAP_PIXELS = 72
"""Between the upper panels and the lower: the axis of the one, the title of the other."""
_MARGIN = {"t": 30, "b": 30}
LONGEST_NAME = 24
"""Characters of a site's name beside its bars; the hover has the whole."""


@dataclass(frozen=True)
class Compared:
    """One quantity at one site. `measured` is None when no update of the site came."""

    site: str
    predicted: float
    measured: float | None

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None without both."""
        return self.measured / self.predicted if self.measured is not None and self.predicted else None


class Quantity(NamedTuple):
    """What is compared: its title, where a forecast and a measurement have it, and how the rounds' many become one number."""

    title: str
    predicted: Callable[[Forecast], float]
    measured: Callable[[Measured], float]
    over_rounds: Callable[[list[float]], float]
    in_bytes: bool = True


QUANTITIES: Final = (
    Quantity("peak memory", lambda it: it.memory_bytes, lambda it: it.peak_memory_bytes, max),
    Quantity("time a round", lambda it: it.seconds, lambda it: sum(it.seconds.values()), fmean, in_bytes=False),
    Quantity("sent a round", lambda it: it.upload_bytes, lambda it: it.uploaded_bytes, fmean),
    Quantity("received a round", lambda it: it.download_bytes, lambda it: it.downloaded_bytes, fmean),
)


def compared(record: RunRecord, quantity: Quantity) -> list[Compared]:
    """This quantity for every site that was ever selected, over the rounds it finished: the largest peak, the mean of the others."""
    return [found for site in record.sites if (found := _at_site(record, site, quantity)) is not None]


def _at_site(record: RunRecord, site: str, quantity: Quantity) -> Compared | None:
    """Only rounds that have both a forecast and a measurement; without any, the newest forecast alone."""
    forecasts = {
        round_: plan.plans[site].forecast for round_, plan in sorted(record.plans.items()) if site in plan.selected and site in plan.plans
    }
    if not forecasts:
        return None
    costs = {
        round_: record.updates[round_][site].measured
        for round_ in forecasts
        if site in record.updates.get(round_, {}) and record.updates[round_][site].outcome is Outcome.COMPLETED
    }
    if not costs:
        return Compared(site, quantity.predicted(forecasts[max(forecasts)]), None)
    predicted = quantity.over_rounds([quantity.predicted(forecasts[round_]) for round_ in costs])
    return Compared(site, predicted, quantity.over_rounds([quantity.measured(cost) for cost in costs.values()]))


@dataclass(frozen=True)
class _Panel:
    """One quantity's place in the figure, two panels beside one another, and the unit its numbers are in."""

    position: int
    title: str
    rows: list[Compared]
    unit: str
    size: float

    @property
    def axis(self) -> str:
        """What plotly appends to `x` and `y` for this panel's axes."""
        return "" if self.position == 0 else str(self.position + 1)

    @property
    def left(self) -> float:
        """Where it begins, as a share of the width."""
        return 0.53 * (self.position % 2)

    @property
    def span(self) -> tuple[float, float]:
        """Bottom and top as shares of the height, so that every row has the same pixels however few there are."""
        share = ROW_PIXELS * len(self.rows) / (2 * ROW_PIXELS * len(self.rows) + GAP_PIXELS)
        return (1 - share, 1.0) if self.position // 2 == 0 else (0.0, share)


def forecast_figure(record: RunRecord) -> Figure | None:
    """Four panels, a row a site: the bar is what was measured, the upright mark what was predicted, the text the ratio."""
    panels = [_panel(position, quantity, compared(record, quantity)) for position, quantity in enumerate(QUANTITIES)]
    if not panels[0].rows:
        return None
    inner = 2 * ROW_PIXELS * len(panels[0].rows) + GAP_PIXELS
    layout: Figure = {"height": inner + _MARGIN["t"] + _MARGIN["b"], "margin": _MARGIN, "showlegend": False}
    layout["annotations"] = [_title(panel) for panel in panels]
    for panel in panels:
        layout |= _axes(panel)
    colours = {site: site_colour(position) for position, site in enumerate(record.sites)}
    return {"data": [trace for panel in panels for trace in (_bars(panel, colours), _marks(panel), _labels(panel))], "layout": layout}


def _panel(position: int, quantity: Quantity, rows: list[Compared]) -> _Panel:
    unit, size = byte_unit(_largest(rows)) if quantity.in_bytes else ("s", 1.0)
    return _Panel(position, quantity.title, rows, unit, size)


def _largest(rows: list[Compared]) -> float:
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
    """The measured number and the ratio, right of both bar and mark."""
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


def _label(row: Compared, size: float) -> str:
    return "  not measured" if row.measured is None else f"  {short(row.measured / size)}  <b>{ratio_text(row.ratio)}</b>"


def _axes(panel: _Panel) -> Figure:
    """The panel's two axes: room at the right for the text, sites named at the left panels only."""
    room = (_largest(panel.rows) / panel.size or 1) * 1.45
    x = {"domain": [panel.left, panel.left + 0.47], "range": [0, room], "anchor": f"y{panel.axis}", "nticks": 5}
    y = {
        "domain": list(panel.span),
        "anchor": f"x{panel.axis}",
        "autorange": "reversed",
        "type": "category",
        "tickvals": [escape(row.site) for row in panel.rows],
        "ticktext": [escape(excerpt(row.site, LONGEST_NAME)) for row in panel.rows],
        "showticklabels": panel.left == 0,
        "showgrid": False,
        "automargin": True,
    }
    return {f"xaxis{panel.axis}": x, f"yaxis{panel.axis}": y}


def _title(panel: _Panel) -> Figure:
    place = {"xref": "paper", "yref": "paper", "x": panel.left, "y": panel.span[1], "xanchor": "left", "yanchor": "bottom"}
    return place | {"text": f"<b>{panel.title}, {panel.unit}</b>", "showarrow": False, "font": {"size": 13}}
