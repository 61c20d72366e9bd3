"""`report.html`: one file with all it needs, plotly's JavaScript included; it opens from a disk and loads nothing. Pure.

Whatever came from a site (names, labels, texts, messages) is escaped by the template or by `figures`, and the
page's own policy lets no script run but the two it was made with.
"""

import base64
import hashlib
import math
from collections.abc import Iterable
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fedpipe_operator import units
from fedpipe_operator.report import closing, facts
from fedpipe_operator.report.figures import all_curves
from fedpipe_operator.report.forecasts import forecast_figure
from fedpipe_operator.report.palette import FEDERATED, MUTED, rank_colours, site_colour, svg_dashes
from fedpipe_operator.report.plan_map import plan_map, ranks_in_use
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.rounds.policies import metric_value

LONGEST_DOCUMENT = 600
"""Characters of a sample's document that the page shows."""

_TEXT_FILTERS: Final = {
    "metric": lambda value, name: units.metric_text(name, value),
    "percent": units.percent,
    "size": units.bytes_text,
    "duration": units.seconds_text,
    "grouped": units.count_text,
    "excerpt": units.excerpt,
}


def write_report(record: RunRecord) -> str:
    """The whole page as HTML text (about 5 MB, nearly all of it plotly)."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= _TEXT_FILTERS
    scripts = (get_plotlyjs(), _part("page.js"))
    return environment.from_string(_part("page.html.j2")).render(
        _sections(record),
        record=record,
        figures=figures(record),
        style=Markup(_part("page.css")),  # noqa: S704 -- our own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704 -- plotly's and our own
        policy=_policy(scripts),
    )


def figures(record: RunRecord) -> dict[str, dict[str, Any]]:
    """The plotly figures that this record has data for, by the id of their place on the page."""
    drawn = {"plan": plan_map(record), "forecast": forecast_figure(record)}
    return {place: _finite(figure) for place, figure in (all_curves(record) | drawn).items() if figure is not None}


def _finite(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """The value with null for every number that JSON does not know: a diverged site's NaN must not cost the page its figures."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sections(record: RunRecord) -> dict[str, Any]:
    """What the template shows beside the figures, as plain rows."""
    metric = facts.metric_of(record)
    compared = closing.closing_rows(record.comparison, metric, facts.train_samples(record)) if record.comparison else ()
    return {
        "metric": metric,
        "titles": units.TITLES,
        "ending": facts.ending(record),
        "headline": facts.headline(record),
        "model": record.run.spec.model.source.rstrip("/").rsplit("/", 1)[-1],
        "result": metric_value(record.result, metric) if record.result else None,
        "compared": compared,
        "second": list(closing.second_metrics(compared)),
        "rounds": facts.round_rows(record),
        "seconds": facts.total_seconds(record),
        "sites": facts.site_rows(record),
        "colours": {site: site_colour(position) for position, site in enumerate(record.sites)},
        "dashes": {site: svg_dashes(position) for position, site in enumerate(record.sites)},
        "federated_colour": FEDERATED,
        "muted": MUTED,
        "ranks": rank_colours(ranks_in_use(record)),
        "left_out": facts.left_out(record),
        "samples": facts.shown_samples(record),
        "marked": record.run.spec.task.type == "SequenceClassification",
        "is_right": closing.is_right,
        "longest": LONGEST_DOCUMENT,
        "software": sorted({f"{name} {version}" for it in record.profiles.values() for name, version in it.software.items()}),
    }


def _policy(scripts: Iterable[str]) -> str:
    """The page's content security policy: these scripts and inline style, nothing from anywhere."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def _part(name: str) -> str:
    """One of the page's own files, from beside this module."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
