"""What a Prometheus answers to the queries of a panel, through its HTTP API."""

import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from observability.model import Kind, Panel, Query

_VARIABLE: Final = re.compile(r"\$(\w+)")
_POINTS: Final = 60
_LISTS: Final = {"alerts": "alerts", "rules": "groups"}
"""The field of an answer's data that is the list, where it is not `result`."""


@dataclass(frozen=True)
class Series:
    """One series of an answer."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]
    """Seconds since the start of the range, and the value; a single point of an instant query."""


@dataclass(frozen=True)
class Source:
    """A Prometheus, the dashboard's choices, and the time range."""

    url: str
    variables: Mapping[str, str]
    """Also `__rate_interval`, which Grafana computes from the scrape interval."""
    seconds: float
    """The range ends now."""

    def answers(self, panel: Panel) -> list[list[Series]]:
        """The series of each of the panel's queries; a query that Prometheus refuses is an `HTTPError`."""
        return [self._series(query, panel.kind) for query in panel.queries]

    def _series(self, query: Query, kind: Kind) -> list[Series]:
        expr = expanded(query.expr, self.variables)
        if kind is not Kind.LINES:
            instant = ask(self.url, "query", query=expr)
            return _with_values(_series(one, [one["value"]], one["value"][0]) for one in instant)
        end = time.time()
        start, step = end - self.seconds, max(1.0, self.seconds / _POINTS)
        found = ask(self.url, "query_range", query=expr, start=start, end=end, step=step)
        return _with_values(_series(one, one["values"], start) for one in found)


def ask(url: str, what: str, **arguments: str | float) -> list[dict[str, Any]]:
    """The results of `/api/v1/query` or `query_range`, or the list of `alerts` or `rules`.

    Raises:
        HTTPError: Prometheus refuses the question, as a query that it cannot parse.
    """
    address = f"{url}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as answer:
        data = json.load(answer)["data"]
    found: list[dict[str, Any]] = data[_LISTS.get(what, "result")]
    return found


def expanded(expr: str, variables: Mapping[str, str]) -> str:
    """The query with the dashboard's choices in place of its variables; one without a choice is a `KeyError`."""
    return _VARIABLE.sub(lambda found: variables[found[1]], expr)


def _with_values(series: Iterable[Series]) -> list[Series]:
    """Those that have a point: a ratio or a quantile of nothing is NaN, which Grafana does not show."""
    return [one for one in series if one.points]


def _series(found: Mapping[str, Any], values: list[list[Any]], start: float) -> Series:
    points = ((at - start, float(value)) for at, value in values)
    return Series(found["metric"], tuple((round(at, 1), value) for at, value in points if math.isfinite(value)))
