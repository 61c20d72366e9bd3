"""`report.html`: one self-contained file including plotly's JavaScript; it opens from a disk and loads nothing. Pure.

Everything from a site (names, labels, texts, messages) is escaped by the template or by `figures`, and the page's
content security policy allows only the page's own two scripts.
"""

import base64
import hashlib
import math
from importlib.resources import files
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from fedpipe_operator import formatting
from fedpipe_operator.report import facts, tables
from fedpipe_operator.report.figures import all_curves
from fedpipe_operator.report.forecasts import forecast_figure
from fedpipe_operator.report.palette import FEDERATED, MUTED, rank_colours, site_colour, svg_dashes
from fedpipe_operator.report.plan_map import plan_map, ranks_in_use, weight_map
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.report.timeline import idle_share, timeline_figure
from fedpipe_operator.rounds.policies import metric_value

MAX_DOCUMENT = 600
"""Characters of a sample's document that the page shows."""

_TEXT_FILTERS: Final = {
    "metric": lambda value, name: formatting.metric_text(name, value),
    "percent": formatting.percent,
    "size": formatting.bytes_text,
    "rate": formatting.rate_text,
    "number": formatting.number_text,
    "duration": formatting.seconds_text,
    "grouped": formatting.count_text,
    "signed": formatting.signed_text,
    "excerpt": formatting.excerpt,
}


def write_report(record: RunRecord) -> str:
    """The page as HTML text (about 5 MB, nearly all of it plotly)."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= _TEXT_FILTERS
    return environment.from_string(_read_asset("page.html.j2")).render(
        _template_context(record),
        record=record,
        figures=figures(record),
        style=Markup(_read_asset("page.css")),  # noqa: S704 -- our own file
        scripts=[Markup(script) for script in _scripts()],  # noqa: S704 -- plotly's and our own
        policy=content_security_policy(),
    )


def figures(record: RunRecord) -> dict[str, dict[str, Any]]:
    """The plotly figures that this record has data for, by the id of their element on the page."""
    others = {
        "importance": weight_map("importance", record.newest_plan.importance if record.newest_plan else {}),
        "plan": plan_map(record),
        "learned": weight_map("learned", facts.learned(record), facts.learned_by(record)),
        "timeline": timeline_figure(record),
        "forecast": forecast_figure(record),
    }
    return {name: _replace_non_finite(figure) for name, figure in (all_curves(record) | others).items() if figure is not None}


def _replace_non_finite(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """Replace NaN and infinity by None: JSON has neither, and a diverged site's NaN must not make the figures unreadable."""
    if isinstance(value, dict):
        return {key: _replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _template_context(record: RunRecord) -> dict[str, Any]:
    """The values that the template shows beside the figures."""
    metric = facts.metric_of(record)
    compared = tables.comparison_rows(record.comparison, metric, facts.train_samples(record)) if record.comparison else ()
    return {
        "metric": metric,
        "titles": formatting.METRIC_TITLES,
        "outcome": facts.outcome_of(record),
        "headline": facts.headline(record),
        "model": record.run.spec.model.source.rstrip("/").rsplit("/", 1)[-1],
        "result": metric_value(record.result, metric) if record.result else None,
        "compared": compared,
        "second": list(tables.second_metrics(compared)),
        "rounds": facts.round_rows(record),
        "seconds": facts.total_seconds(record),
        "sites": facts.site_rows(record),
        "measured": facts.measured_rows(record),
        "trainings": facts.training_rows(record),
        "planning": facts.PLANNING_SENTENCES[record.run.spec.planning.mode],
        "idle": idle_share(record),
        "contributions": facts.contribution_rows(record),
        "colours": {site: site_colour(position) for position, site in enumerate(record.sites)},
        "dashes": {site: svg_dashes(position) for position, site in enumerate(record.sites)},
        "federated_colour": FEDERATED,
        "muted": MUTED,
        "ranks": rank_colours(ranks_in_use(record)),
        "left_out": facts.left_out(record),
        "samples": facts.shown_samples(record),
        "marked": record.run.spec.task.has_right_answers,
        "is_right": tables.is_right,
        "max_document": MAX_DOCUMENT,
        "software": sorted({f"{name} {version}" for profile in record.profiles.values() for name, version in profile.software.items()}),
    }


def content_security_policy() -> str:
    """Allows the page's two scripts and inline style, and no other source."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in _scripts())
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def _scripts() -> tuple[str, str]:
    return get_plotlyjs(), _read_asset("page.js")


def _read_asset(name: str) -> str:
    """The text of one of the page's files in this package."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
