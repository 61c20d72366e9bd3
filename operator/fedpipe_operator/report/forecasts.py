"""Predicted against measured: what each site's plan said a round would need, and what its trainer reported. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Final, NamedTuple

from fedpipe_operator.report.figures import Figure
from fedpipe_operator.report.palette import MUTED, site_colour
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.report.units import byte_unit, excerpt, ratio_text, short
from fedpipe_trainer.contract import Forecast, Measured, Outcome

ROW_PIXELS = 30
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


def forecast_figure(record: RunRecord) -> Figure | None:
    """Four panels, a row a site: the bar is what was measured, the upright mark what was predicted, the text the ratio."""
    tables = [compared(record, quantity) for quantity in QUANTITIES]
    if not tables[0]:
        return None
    sites = [row.site for row in tables[0]]
    figure: Figure = {"data": [], "layout": {"height": 2 * (len(sites) * ROW_PIXELS + 64), "showlegend": False, "annotations": []}}
    for panel, (quantity, rows) in enumerate(zip(QUANTITIES, tables, strict=True)):
        unit, size = byte_unit(max(max(row.predicted, row.measured or 0) for row in rows)) if quantity.in_bytes else ("s", 1.0)
        axis = "" if panel == 0 else str(panel + 1)
        axes = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
        figure["data"] += [_bars(record, rows, (unit, size)) | axes, _marks(rows, (unit, size)) | axes]
        figure["layout"] |= _axes(panel, axis, max(max(row.predicted, row.measured or 0) for row in rows) / size)
        figure["layout"][f"yaxis{axis}"] |= {
            "tickvals": [escape(site) for site in sites],
            "ticktext": [escape(excerpt(site, LONGEST_NAME)) for site in sites],
        }
        figure["layout"]["annotations"].append(_title(panel, f"{quantity.title}, {unit}"))
    return figure


def _bars(record: RunRecord, rows: list[Compared], scale: tuple[str, float]) -> Figure:
    unit, size = scale
    return {
        "type": "bar",
        "orientation": "h",
        "name": "measured",
        "y": [escape(row.site) for row in rows],
        "x": [None if row.measured is None else row.measured / size for row in rows],
        "text": [_label(row, size) for row in rows],
        "textposition": "outside",
        "cliponaxis": False,
        "width": 0.5,
        "marker": {"color": [site_colour(record.sites.index(row.site)) for row in rows]},
        "hovertemplate": f"%{{y}}: %{{x:.4g}} {unit} measured<extra></extra>",
    }


def _marks(rows: list[Compared], scale: tuple[str, float]) -> Figure:
    unit, size = scale
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "predicted",
        "y": [escape(row.site) for row in rows],
        "x": [row.predicted / size for row in rows],
        "marker": {"symbol": "line-ns", "size": 20, "line": {"width": 3, "color": MUTED}},
        "hovertemplate": f"%{{y}}: %{{x:.4g}} {unit} predicted<extra></extra>",
    }


def _label(row: Compared, size: float) -> str:
    return "" if row.measured is None else f"   {short(row.measured / size)}  <b>{ratio_text(row.ratio)}</b>"


def _axes(panel: int, axis: str, largest: float) -> Figure:
    """The panel's two axes: two columns, two rows; room at the right for the text, sites named at the left only."""
    column, row = panel % 2, panel // 2
    x = {"domain": [0.53 * column, 0.47 + 0.53 * column], "range": [0, (largest or 1) * 1.45], "anchor": f"y{axis}", "nticks": 5}
    y = {
        "domain": [0.57, 0.94] if row == 0 else [0.0, 0.37],
        "anchor": f"x{axis}",
        "autorange": "reversed",
        "type": "category",
        "showgrid": False,
    }
    return {f"xaxis{axis}": x, f"yaxis{axis}": y | {"showticklabels": column == 0, "automargin": True}}


def _title(panel: int, text: str) -> Figure:
    place = {
        "xref": "paper",
        "yref": "paper",
        "x": 0.53 * (panel % 2),
        "y": 0.95 if panel // 2 == 0 else 0.38,
        "xanchor": "left",
        "yanchor": "bottom",
    }
    return place | {"text": f"<b>{text}</b>", "showarrow": False, "font": {"size": 13}}
