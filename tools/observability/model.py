"""What a dashboard is made of, without anything of Grafana."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """How a panel shows its queries."""

    LINES = "timeseries"
    """Over the dashboard's time range."""
    VALUES = "stat"
    """The newest values, large."""
    BARS = "bargauge"
    """The newest values, a bar each."""
    TABLE = "table"
    """The newest values: a row for each set of labels, a column for each query."""


@dataclass(frozen=True)
class Query:
    """One query in PromQL."""

    expr: str
    legend: str
    """Grafana's template of a series' name; in a table the title of the column."""


@dataclass(frozen=True)
class Threshold:
    """From this value on, the panel has this colour."""

    value: float
    colour: str


@dataclass(frozen=True)
class Panel:
    """One panel."""

    title: str
    description: str
    """For a platform engineer who has not read our documentation."""
    unit: str
    """One of `grafana_foundation_sdk.models.units`."""
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    width: int = 8
    """Of 24 columns."""
    height: int = 8
    thresholds: tuple[Threshold, ...] = ()
    may_be_empty: str = ""
    """Why the panel may have no data although every metric is there."""


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label."""

    name: str
    label: str
    query: str
    """Grafana's `label_values(…)`."""
    many: bool = True
    """Several values, or all of them, may be chosen."""


@dataclass(frozen=True)
class Dashboard:
    """One dashboard."""

    uid: str
    """Fixed, so that links to the dashboard and annotations outlive an upgrade."""
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    def panels(self) -> Iterator[Panel]:
        """All panels, in order."""
        for row in self.rows:
            yield from row.panels


OF_RELEASE: Final = 'release=~"$release"'
"""What every query selects: the scrape gives each target its release. "All" also finds series without this label."""
RELEASE: Final = Variable("release", "Release", "label_values(fedpipe_build_info, release)")
