"""The plan and the importance of the weights as heat maps: a row per kind of weight, a column per layer. Pure.

The plan has a band per site with the rank in the cell; the layers below the lowest one that the site trains are shaded. A column
per weight would be 120 columns for 30 layers of 4 weights.
"""

from collections.abc import Mapping
from html import escape
from statistics import fmean
from types import MappingProxyType

from fedpipe_operator.report.figures import Figure
from fedpipe_operator.report.palette import MUTED, QUANTITY, rank_colours
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.weight_grid import WeightGrid, weight_grid
from fedpipe_trainer.contract import Plan

ROW_PIXELS = 22
BAND_PIXELS = 42
"""For a site's title and the gap above it."""
MAX_LABELLED_LAYERS = 40
"""The largest number of columns whose cells have space for a number."""
_MARGIN = {"t": 4, "b": 48}
_NO_LAYER = "none"
_NO_NOTES: Mapping[str, str] = MappingProxyType({})


def weight_map(name: str, values: Mapping[str, float], notes: Mapping[str, str] = _NO_NOTES) -> Figure | None:
    """A quantity of every weight, such as its importance, in percent of the mean, in the same rows and columns as the plan.

    Args:
        name: of the quantity.
        values: by weight; empty: there is no figure.
        notes: by weight, a line of its hover text.
    """
    if not values:
        return None
    cells = weight_grid(values)
    percent = {weight: 100 * value / mean for weight, value in values.items()} if (mean := fmean(values.values())) else dict(values)
    trace = _heat_map(cells, percent, notes) | {
        "name": name,
        "hovertemplate": "%{customdata}<br>%{z:.0f} % of the mean<extra></extra>",
        "texttemplate": "%{z:.0f}" if len(cells.layers) <= MAX_LABELLED_LAYERS else "",
        "colorscale": [[stop / (len(QUANTITY) - 1), colour] for stop, colour in enumerate(QUANTITY)],
        "zmin": 0,
    }
    rows = {"autorange": "reversed", "type": "category", "showgrid": False, "automargin": True}
    height = len(cells.kinds) * ROW_PIXELS + _MARGIN["t"] + _MARGIN["b"]
    return {"data": [trace], "layout": {"height": height, "margin": _MARGIN, "yaxis": rows, "xaxis": _layers_axis("y")}}


def plan_map(record: RunRecord) -> Figure | None:
    """The ranks of the newest plan."""
    plans = record.newest_plan.plans if record.newest_plan else {}
    if not any(plan.ranks for plan in plans.values()):
        return None
    cells = weight_grid(dict.fromkeys(weight for plan in plans.values() for weight in plan.ranks))
    sites = sorted(plans)
    inner = len(sites) * (len(cells.kinds) * ROW_PIXELS + BAND_PIXELS)
    figure: Figure = {
        "data": [],
        "layout": {"height": inner + _MARGIN["t"] + _MARGIN["b"], "margin": _MARGIN, "annotations": [], "shapes": []},
    }
    scale = _colour_scale(ranks_in_use(record))
    for position, site in enumerate(sites):
        axis = "" if position == 0 else str(position + 1)
        top = 1 - position / len(sites)
        figure["data"].append(_band(site, plans[site], cells) | {"yaxis": f"y{axis}"} | scale)
        figure["layout"][f"yaxis{axis}"] = _rows(top, 1 / len(sites), inner)
        figure["layout"]["annotations"].append(_title(site, plans[site], top))
        figure["layout"]["shapes"] += _untrained_layers(plans[site], cells, f"y{axis} domain")
    figure["layout"]["xaxis"] = _layers_axis("y" if len(sites) == 1 else f"y{len(sites)}")
    return figure


def ranks_in_use(record: RunRecord) -> set[int]:
    """All ranks in the newest plan."""
    plans = record.newest_plan.plans if record.newest_plan else {}
    return {rank for plan in plans.values() for rank in plan.ranks.values()}


def _band(site: str, plan: Plan, cells: WeightGrid) -> Figure:
    """One site's cells: the rank of every weight; None where the layer has no such weight."""
    return _heat_map(cells, plan.ranks) | {
        "name": escape(site),
        "hovertemplate": f"%{{customdata}}<br>rank %{{z}} on a {plan.bits}-bit base<extra>{escape(site)}</extra>",
        "texttemplate": "%{z}" if len(cells.layers) <= MAX_LABELLED_LAYERS else "",
    }


def _heat_map(cells: WeightGrid, values: Mapping[str, float], notes: Mapping[str, str] = _NO_NOTES) -> Figure:
    """A cell per weight with its value; None where the layer has no such weight. Its hover text begins with its name and its note."""
    named = [[cells.weights[kind].get(layer) for layer in cells.layers] for kind in cells.kinds]
    return {
        "type": "heatmap",
        "x": [_NO_LAYER if layer is None else str(layer) for layer in cells.layers],
        "y": [escape(kind) for kind in cells.kinds],
        "z": [[None if weight is None else values.get(weight) for weight in row] for row in named],
        "customdata": [[_hover(weight, notes) for weight in row] for row in named],
        "hoverongaps": False,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }


def _hover(weight: str | None, notes: Mapping[str, str]) -> str:
    """The weight's name, and its note in a second line."""
    if weight is None:
        return ""
    return "<br>".join(escape(text) for text in (weight, notes.get(weight, "")) if text)


def _untrained_layers(plan: Plan, cells: WeightGrid, yref: str) -> list[Figure]:
    """A shaded box over the layers below the plan's lowest one, with words where there is space for them."""
    below = sum(layer is not None and layer < plan.lowest_layer for layer in cells.layers)
    if not below:
        return []
    box = {"type": "rect", "xref": "x", "yref": yref, "x0": -0.5, "x1": below - 0.5, "y0": 0, "y1": 1}
    label = {"text": "not trained" if below > 1 else "", "font": {"size": 12}}
    return [box | {"fillcolor": MUTED, "opacity": 0.55, "line": {"width": 0}, "label": label}]


def _layers_axis(anchor: str) -> Figure:
    return {"title": {"text": "layer"}, "type": "category", "anchor": anchor, "showgrid": False, "automargin": True}


def _colour_scale(ranks: set[int]) -> Figure:
    """A stop for each rank in use, so that neighbours such as 4 and 8 of 64 have clearly different colours."""
    colours = rank_colours(ranks)
    highest = max(*ranks, 1)
    stops = {rank / highest: colour for rank, colour in colours.items()}
    ends = {0.0: colours.get(0, colours[min(ranks)]), 1.0: colours[max(ranks)]}
    return {"colorscale": sorted([stop, colour] for stop, colour in (ends | stops).items()), "zmin": 0, "zmax": highest}


def _rows(top: float, height: float, inner: int) -> Figure:
    """A band's vertical axis: below its title, the first kind at the top."""
    below_title = top - BAND_PIXELS / inner
    return {
        "domain": [max(top - height, 0.0), below_title],
        "autorange": "reversed",
        "type": "category",
        "showgrid": False,
        "automargin": True,
    }


def _title(site: str, plan: Plan, top: float) -> Figure:
    adapters = sum(rank > 0 for rank in plan.ranks.values())
    depth = f", trained from layer {plan.lowest_layer} up" if plan.lowest_layer else ""
    summary = f"{plan.bits}-bit base, batch {plan.batch_size}, {plan.steps} steps, {adapters} of {len(plan.ranks)} weights adapted{depth}"
    position = {"xref": "paper", "yref": "paper", "x": 0, "y": top, "xanchor": "left", "yanchor": "top", "yshift": -14}
    return position | {"text": f"<b>{escape(site)}</b>  {summary}", "showarrow": False, "font": {"size": 13}}
