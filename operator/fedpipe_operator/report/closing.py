"""The closing table: what the federation was worth. As plain rows for the page, as rich tables for the terminal.

Texts and names that came from sites go into `rich.text.Text`, never into markup.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from rich import box
from rich.table import Table
from rich.text import Text

from fedpipe_operator.api import LOWER_IS_BETTER, MetricName
from fedpipe_operator.rounds.policies import metric_value
from fedpipe_operator.rounds.records import Comparison, RoundEvaluation
from fedpipe_operator.units import TITLES, count_text, excerpt, metric_text
from fedpipe_trainer.contract import Sample

BASE = "base model, untouched"
FEDERATED = "federated"
_NO_SAMPLES: Mapping[str, int] = MappingProxyType({})
_LONGEST_DOCUMENT = 80
_LONGEST_ANSWER = 60


@dataclass(frozen=True)
class ClosingRow:
    """One row: a model, the samples it was trained on (None when unknown), its metrics; `best` when no row has a better first metric."""

    label: str
    samples: int | None
    value: float | None
    second: dict[MetricName, float]
    best: bool = False


def closing_rows(comparison: Comparison, metric: MetricName, train_samples: Mapping[str, int] = _NO_SAMPLES) -> tuple[ClosingRow, ...]:
    """The base, each site alone in order of name, the federated model; all that share the best value are marked.

    `train_samples` is by site; the federated row has their sum, over the sites that were compared.
    """
    alone = sorted(comparison.alone)
    known = [train_samples[site] for site in alone if site in train_samples]
    rows = (
        _row((BASE, 0), comparison.base, metric),
        *(_row((f"{site} alone", train_samples.get(site)), comparison.alone[site], metric) for site in alone),
        _row((FEDERATED, sum(known) if known else None), comparison.federated, metric),
    )
    best = best_value(metric, (row.value for row in rows))
    return tuple(replace(row, best=row.value is not None and row.value == best) for row in rows)


def best_value(metric: MetricName, values: Iterable[float | None]) -> float | None:
    """The best of these values of a metric, or None when there are none."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    return (min if metric in LOWER_IS_BETTER else max)(there, default=None)


def second_metrics(rows: Iterable[ClosingRow]) -> tuple[MetricName, ...]:
    """The metrics beside the first that any row has, in the order tables show them."""
    return tuple(name for name in TITLES if any(name in row.second for row in rows))


def closing_table(comparison: Comparison, metric: MetricName, train_samples: Mapping[str, int] = _NO_SAMPLES) -> Table:
    """The closing table for the terminal; the best row is bold and says so."""
    rows = closing_rows(comparison, metric, train_samples)
    second = second_metrics(rows)
    table = Table(box=box.SIMPLE_HEAD, title="What the federation was worth", title_justify="left")
    table.add_column("model")
    table.add_column("trained on", justify="right")
    for name in (metric, *second):
        table.add_column(TITLES[name], justify="right")
    table.add_column("")
    for row in rows:
        values = (metric_text(metric, row.value), *(metric_text(name, row.second.get(name)) for name in second))
        cells = (row.label, count_text(row.samples), *values, "best" if row.best else "")
        table.add_row(*(Text(cell) for cell in cells), style="bold green" if row.best else "")
    return table


def samples_table(samples: Iterable[Sample], *, marked: bool = True) -> Table:
    """Documents, shortened, with the true and the predicted answer. `marked`: ✓ or ✗ beside each, for tasks with one right answer."""
    table = Table(box=box.SIMPLE_HEAD, title="A few documents", title_justify="left")
    for title in ("", "true", "predicted", "document")[0 if marked else 1 :]:
        table.add_column(title, overflow="fold")
    for sample in samples:
        texts = [Text(excerpt(text, _LONGEST_ANSWER)) for text in (sample.expected, sample.predicted)]
        document = Text(excerpt(sample.text, _LONGEST_DOCUMENT), style="dim")
        mark = Text("✓", style="green") if is_right(sample) else Text("✗", style="red")
        table.add_row(*([mark] if marked else []), *texts, document)
    return table


def is_right(sample: Sample) -> bool:
    """Whether the predicted answer is the true one, white space at the ends apart."""
    return sample.expected.strip() == sample.predicted.strip()


def _row(what: tuple[str, int | None], evaluation: RoundEvaluation, metric: MetricName) -> ClosingRow:
    label, samples = what
    second = {name: evaluation.metrics[name] for name in TITLES if name in evaluation.metrics and name != metric}
    return ClosingRow(label=label, samples=samples, value=metric_value(evaluation, metric), second=second)
