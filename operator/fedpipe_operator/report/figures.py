"""The curves of the page as plotly figures: plain dicts of `data` and `layout`, rendered by the browser. Pure.

The page sets the colours of text and grid (for its dark and light theme) and has one legend for all curves.
Every name from a site passes through `escape`, because plotly interprets a subset of HTML in its texts.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from fedpipe_operator.api import MetricName
from fedpipe_operator.formatting import FRACTION_METRICS, METRIC_TITLES
from fedpipe_operator.report.facts import metric_of
from fedpipe_operator.report.palette import FEDERATED, MUTED, site_colour, site_dash
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.report.tables import best_value
from fedpipe_operator.rounds.policies import metric_value
from fedpipe_operator.rounds.records import RoundEvaluation

Figure = dict[str, Any]
"""A plotly figure as JSON: `{"data": [trace, …], "layout": {…}}`."""

MAX_POINTS = 150
"""Of a training curve: longer curves are downsampled to the means of neighbouring steps."""


def metric_figure(record: RunRecord, metric: MetricName) -> Figure | None:
    """A metric of every round's global adapter: aggregated over the sites' validation data, and at each site."""
    rounds = sorted(record.evaluations)
    if not any(metric_value(record.evaluations[round_], metric) is not None for round_ in rounds):
        return None
    factor = 100.0 if metric in FRACTION_METRICS else 1.0
    traces = [_site_curve(record, position, (metric, factor)) for position in range(len(record.sites))]
    values = [_scaled(metric_value(record.evaluations[round_], metric), factor) for round_ in rounds]
    traces.append(_line("federated", (rounds, values), FEDERATED, line={"width": 3.5}, marker={"size": 8}))
    title = f"{METRIC_TITLES[metric]}, %" if metric in FRACTION_METRICS else METRIC_TITLES[metric]
    layout = _layout("round (0: base model)", title)
    layout["xaxis"] |= {"tickmode": "linear", "dtick": max(1, math.ceil(len(rounds) / 12))}
    layout["shapes"] = _best_local_only_line(record, metric, factor)
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def _site_curve(record: RunRecord, position: int, shown: tuple[MetricName, float]) -> Figure:
    site, (metric, factor) = record.sites[position], shown
    results = {round_: evaluation.sites[site] for round_, evaluation in sorted(record.evaluations.items()) if site in evaluation.sites}
    values = [_scaled(metric_value(result, metric), factor) for result in results.values()]
    style = {"color": site_colour(position), "dash": site_dash(position), "width": 1.5}
    return _line(escape(site), (list(results), values), site_colour(position), line=style, marker={"size": 5})


def _best_local_only_line(record: RunRecord, metric: MetricName, factor: float) -> list[Figure]:
    """A dashed line at the best local-only baseline, when the record has a comparison."""
    baselines: Iterable[RoundEvaluation] = record.comparison.local_only.values() if record.comparison else ()
    best = best_value(metric, (metric_value(evaluation, metric) for evaluation in baselines))
    if best is None:
        return []
    height = best * factor
    style = {"color": MUTED, "dash": "dash", "width": 1.5}
    return [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height, "line": style}]


def training_loss_figure(record: RunRecord) -> Figure | None:
    """Each site's training loss over its optimiser steps, all rounds in sequence."""
    traces = [trace for position in range(len(record.sites)) if (trace := _loss_curve(record, position))["x"]]
    return {"data": traces, "layout": _layout("optimiser step of the site, over all rounds", "training loss")} if traces else None


def _loss_curve(record: RunRecord, position: int) -> Figure:
    site = record.sites[position]
    updates = [record.updates[round_][site] for round_ in sorted(record.updates) if site in record.updates[round_]]
    steps, losses = downsample([loss for update in updates for loss in update.losses])
    style = {"color": site_colour(position), "dash": site_dash(position), "width": 1.8}
    return _line(escape(site), (steps, losses), site_colour(position), line=style, mode="lines")


def downsample(values: Sequence[float], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """The middle step (from 1) of each group of neighbouring steps, and the group's mean; at most `limit` groups of equal size."""
    window = max(1, math.ceil(len(values) / limit))
    groups = [values[start : start + window] for start in range(0, len(values), window)]
    return [index * window + (len(group) + 1) / 2 for index, group in enumerate(groups)], [sum(group) / len(group) for group in groups]


def truncated_energy_figure(record: RunRecord) -> Figure | None:
    """Energy lost by truncation to the global rank in each round, in %: the largest of any weight, and the mean over the weights."""
    lost = {round_: list(commit.truncated_energy.values()) for round_, commit in sorted(record.rounds.items()) if commit.truncated_energy}
    if not lost:
        return None
    largest = [100 * max(fractions) for fractions in lost.values()]
    mean = [100 * sum(fractions) / len(fractions) for fractions in lost.values()]
    traces = [
        _line("largest of any weight", (list(lost), largest), "#D55E00", line={"width": 2}, marker={"size": 7}),
        _line("mean over the weights", (list(lost), mean), MUTED, line={"width": 2, "dash": "dot"}, marker={"size": 6}),
    ]
    layout = _layout("round", "truncated energy, %")
    layout["xaxis"] |= {"tickmode": "linear", "dtick": max(1, math.ceil(len(lost) / 12))}
    layout["yaxis"] |= {"rangemode": "tozero"}
    layout |= {"showlegend": True, "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}}
    return {"data": traces, "layout": layout}


def all_curves(record: RunRecord) -> dict[str, Figure]:
    """The curves that this record has data for, by the id of their element on the page."""
    metric = metric_of(record)
    curves = {
        "metric": metric_figure(record, metric),
        "loss": metric_figure(record, "loss") if metric != "loss" else None,
        "training": training_loss_figure(record),
        "energy": truncated_energy_figure(record),
    }
    return {name: figure for name, figure in curves.items() if figure is not None}


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None or not math.isfinite(value) else value * factor


def _line(name: str, points: tuple[Sequence[float], Sequence[float | None]], colour: str, **style: Any) -> Figure:  # noqa: ANN401 -- plotly's own attributes
    x, y = points
    style["line"] = {"color": colour} | style.get("line", {})
    template = "%{y:.4g}<extra>" + name + "</extra>"
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(x), "y": list(y), "hovertemplate": template} | style


def _layout(x: str, y: str) -> Figure:
    return {
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "zeroline": False},
        "showlegend": False,
        "hovermode": "x unified",
        "height": 300,
    }
