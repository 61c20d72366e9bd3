"""The comparison of base, local-only baselines and federated model: plain rows for the page, rich tables for the terminal.

Texts and names from sites are passed as `rich.text.Text`, never as markup.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from rich import box
from rich.table import Table
from rich.text import Text

from fedpipe_operator.api import LOWER_IS_BETTER, MetricName
from fedpipe_operator.formatting import METRIC_TITLES, count_text, excerpt, metric_text
from fedpipe_operator.rounds.policies import metric_value
from fedpipe_operator.rounds.records import Comparison, RoundEvaluation
from fedpipe_trainer.contract import Sample

BASE = "base model, untouched"
FEDERATED = "federated"
_UNKNOWN_SAMPLES: Mapping[str, int] = MappingProxyType({})
_MAX_DOCUMENT = 80
_MAX_ANSWER = 60


@dataclass(frozen=True)
class ComparisonRow:
    """One row: a model, its training samples (None when unknown), its metrics; `best` when no row has a better primary metric."""

    label: str
    samples: int | None
    value: float | None
    second: dict[MetricName, float]
    best: bool = False


def comparison_rows(
    comparison: Comparison, metric: MetricName, train_samples: Mapping[str, int] = _UNKNOWN_SAMPLES
) -> tuple[ComparisonRow, ...]:
    """The base, the local-only baselines in order of site, the federated model; every row with the best value is marked.

    `train_samples` is by site; the federated row has the sum over the compared sites.
    """
    sites = sorted(comparison.local_only)
    known = [train_samples[site] for site in sites if site in train_samples]
    rows = (
        _row((BASE, 0), comparison.base, metric),
        *(_row((f"{site}, local only", train_samples.get(site)), comparison.local_only[site], metric) for site in sites),
        _row((FEDERATED, sum(known) if known else None), comparison.federated, metric),
    )
    best = best_value(metric, (row.value for row in rows))
    return tuple(replace(row, best=row.value is not None and row.value == best) for row in rows)


def best_value(metric: MetricName, values: Iterable[float | None]) -> float | None:
    """The best finite value of a metric; None when there is none."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return (min if metric in LOWER_IS_BETTER else max)(finite, default=None)


def second_metrics(rows: Iterable[ComparisonRow]) -> tuple[MetricName, ...]:
    """The metrics other than the primary one that any row has, in the order of the tables."""
    return tuple(name for name in METRIC_TITLES if any(name in row.second for row in rows))


def comparison_table(comparison: Comparison, metric: MetricName, train_samples: Mapping[str, int] = _UNKNOWN_SAMPLES) -> Table:
    """The comparison table for the terminal; the best row is bold and labelled."""
    rows = comparison_rows(comparison, metric, train_samples)
    second = second_metrics(rows)
    table = Table(box=box.SIMPLE_HEAD, title="Comparison with the local-only baselines", title_justify="left")
    table.add_column("model")
    table.add_column("trained on", justify="right")
    for name in (metric, *second):
        table.add_column(METRIC_TITLES[name], justify="right")
    table.add_column("")
    for row in rows:
        values = (metric_text(metric, row.value), *(metric_text(name, row.second.get(name)) for name in second))
        cells = (row.label, count_text(row.samples), *values, "best" if row.best else "")
        table.add_row(*(Text(cell) for cell in cells), style="bold green" if row.best else "")
    return table


def samples_table(samples: Iterable[Sample], *, marked: bool = True) -> Table:
    """Shortened documents with their true and predicted answer. `marked`: with ✓ or ✗, for tasks with one right answer."""
    table = Table(box=box.SIMPLE_HEAD, title="Sample documents", title_justify="left")
    for title in ("", "true", "predicted", "document")[0 if marked else 1 :]:
        table.add_column(title, overflow="fold")
    for sample in samples:
        texts = [Text(excerpt(text, _MAX_ANSWER)) for text in (sample.expected, sample.predicted)]
        document = Text(excerpt(sample.text, _MAX_DOCUMENT), style="dim")
        mark = Text("✓", style="green") if is_right(sample) else Text("✗", style="red")
        table.add_row(*([mark] if marked else []), *texts, document)
    return table


def is_right(sample: Sample) -> bool:
    """Whether the predicted answer equals the true one, ignoring white space at the ends."""
    return sample.expected.strip() == sample.predicted.strip()


def _row(what: tuple[str, int | None], evaluation: RoundEvaluation, metric: MetricName) -> ComparisonRow:
    label, samples = what
    second = {name: evaluation.metrics[name] for name in METRIC_TITLES if name in evaluation.metrics and name != metric}
    return ComparisonRow(label=label, samples=samples, value=metric_value(evaluation, metric), second=second)
