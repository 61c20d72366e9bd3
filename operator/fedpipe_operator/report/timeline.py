"""How the sites spent each round, as a Gantt chart: the phases of each trainer, then idle until the slowest site has finished. Pure.

The seconds are those that the trainers measured. The sites are drawn side by side, as they run on machines of their own: where they
share one machine and wait for its processors, that time is in the duration of the round but not here.
"""

import math
from dataclasses import dataclass
from html import escape
from typing import Final

from fedpipe_operator.formatting import excerpt
from fedpipe_operator.report.figures import Figure
from fedpipe_operator.report.palette import IDLE, OTHER_PHASE, PHASES
from fedpipe_operator.report.record import RunRecord
from fedpipe_trainer.contract import Outcome

MAX_ROUNDS: Final = 8
"""The newest rounds that are drawn; the idle share is of all."""
MAX_NAME: Final = 24
"""Characters of a site's name beside its bars; the hover text has the full name."""
ROW_PIXELS: Final = 30
_MARGIN = {"t": 54, "b": 44}
_IDLE: Final = "idle"
_OTHER: Final = "other"


@dataclass(frozen=True)
class RoundTimeline:
    """Seconds by site and phase of the updates that a round aggregated."""

    round: int
    sites: dict[str, dict[str, float]]

    @property
    def seconds(self) -> float:
        """Of the slowest site."""
        return max(sum(phases.values()) for phases in self.sites.values())

    def idle(self, site: str) -> float:
        """Seconds from the end of this site's task to the end of the slowest site's."""
        return self.seconds - sum(self.sites[site].values())


def round_timelines(record: RunRecord) -> list[RoundTimeline]:
    """The committed rounds in order, without updates that measured nothing."""
    timelines = []
    for round_, commit in sorted(record.rounds.items()):
        updates = {one.site: record.updates.get(round_, {}).get(one.site) for one in commit.contributions}
        completed = {site: update for site, update in updates.items() if update and update.outcome is Outcome.COMPLETED}
        sites = {site: phases for site, update in completed.items() if (phases := _by_phase(update.measured.seconds))}
        if sites:
            timelines.append(RoundTimeline(round_, sites))
    return timelines


def idle_share(record: RunRecord) -> float | None:
    """The share of the sites' time in all rounds in which they waited for the slowest one, 0 to 1; None if nothing was measured."""
    timelines = round_timelines(record)
    available = sum(timeline.seconds * len(timeline.sites) for timeline in timelines)
    return sum(timeline.idle(site) for timeline in timelines for site in timeline.sites) / available if available else None


def timeline_figure(record: RunRecord) -> Figure | None:
    """A row per site, the rounds one after the other, each as long as its slowest site."""
    timelines = round_timelines(record)[-MAX_ROUNDS:]
    if not timelines:
        return None
    starts = [sum(before.seconds for before in timelines[:at]) for at in range(len(timelines))]
    sites = [site for site in record.sites if any(site in timeline.sites for timeline in timelines)]
    bars = [bar for timeline, start in zip(timelines, starts, strict=True) for bar in _bars(timeline, start)]
    used = [phase for phase in (*PHASES, _OTHER, _IDLE) if any(bar.phase == phase for bar in bars)]
    layout: Figure = {
        "height": len(sites) * ROW_PIXELS + _MARGIN["t"] + _MARGIN["b"],
        "margin": _MARGIN,
        "barmode": "overlay",  # each bar has its own start
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "yref": "container"},
        "xaxis": {"title": {"text": "seconds"}, "range": [0, sum(timeline.seconds for timeline in timelines)], "zeroline": False},
        "yaxis": _rows(sites),
        "shapes": [_boundary(start) for start in starts[1:]],
        "annotations": [_title(timeline.round, start) for timeline, start in zip(timelines, starts, strict=True)],
    }
    return {"data": [_trace(phase, [bar for bar in bars if bar.phase == phase]) for phase in used], "layout": layout}


@dataclass(frozen=True)
class _Bar:
    """One phase of one site in one round."""

    site: str
    round: int
    phase: str
    start: float
    seconds: float


def _by_phase(seconds: dict[str, float]) -> dict[str, float]:
    """The seconds of the known phases in their order, and the sum of all others; without values that are not finite and above 0."""
    finite = {phase: value for phase, value in seconds.items() if math.isfinite(value) and value > 0}
    other = sum(value for phase, value in finite.items() if phase not in PHASES)
    return {phase: finite[phase] for phase in PHASES if phase in finite} | ({_OTHER: other} if other else {})


def _bars(timeline: RoundTimeline, start: float) -> list[_Bar]:
    bars = []
    for site, phases in timeline.sites.items():
        begin = start
        for phase, seconds in (phases | {_IDLE: timeline.idle(site)}).items():
            bars.append(_Bar(site, timeline.round, phase, begin, seconds))
            begin += seconds
    return bars


def _trace(phase: str, bars: list[_Bar]) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": phase,
        "y": [escape(bar.site) for bar in bars],
        "x": [bar.seconds for bar in bars],
        "base": [bar.start for bar in bars],
        "width": 0.6,
        "marker": {"color": {_IDLE: IDLE, _OTHER: OTHER_PHASE, **PHASES}[phase]},
        "customdata": [bar.round for bar in bars],
        "hovertemplate": f"%{{y}}, round %{{customdata}}: {phase} %{{x:.3s}} s<extra></extra>",
    }


def _rows(sites: list[str]) -> Figure:
    return {
        "type": "category",
        "autorange": "reversed",
        "categoryorder": "array",
        "categoryarray": [escape(site) for site in sites],
        "tickvals": [escape(site) for site in sites],
        "ticktext": [escape(excerpt(site, MAX_NAME)) for site in sites],
        "showgrid": False,
        "automargin": True,
    }


def _boundary(start: float) -> Figure:
    return {"type": "line", "xref": "x", "yref": "paper", "x0": start, "x1": start, "y0": 0, "y1": 1, "line": {"width": 1, "dash": "dot"}}


def _title(round_: int, start: float) -> Figure:
    position = {"xref": "x", "yref": "paper", "x": start, "y": 1, "xanchor": "left", "yanchor": "bottom"}
    return position | {"text": f"round {round_}", "showarrow": False, "font": {"size": 12}}
