"""The counters of namespaces and sites as samples. Pure.

A counter whose labels have known values begins with 0, so that its first increment is one to Prometheus: of a series that begins with 1,
`increase` is 0.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from fedpipe_operator.admission import RefusalReason
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.metrics.counting import END_REASONS, Increment
from fedpipe_operator.metrics.samples import Sample
from fedpipe_operator.rounds.replanning import Cause

Totals = Mapping[str, Mapping[tuple[str, ...], float]]
"""By name of a counter, by the values of its labels."""

OTHER: Final = "Other"
MOST_REASONS: Final = 32
"""Of the attempts in a namespace. Most are words of ours, some are Kubernetes', and whoever may edit Jobs can write others."""
_REASON: Final = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ATTEMPTS: Final = "attempts_total"
_REFUSED: Final = "updates_refused_total"

_KNOWN: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "runs_finished_total": tuple((result, str(reason)) for result, reason in END_REASONS),
    _REFUSED: tuple((str(reason),) for reason in RefusalReason),
    "replans_total": tuple((str(cause),) for cause in Cause),
    "out_of_memory_total": tuple((str(kind),) for kind in TaskKind if kind is not TaskKind.PLAN),
}
"""The values of the labels after the namespace."""


def bounded(increment: Increment, reasons: Collection[str]) -> Increment:
    """The increment with a reason that may be a label's value; `reasons` are those that attempts of the namespace have had."""
    if increment.name not in {_ATTEMPTS, _REFUSED}:
        return increment
    *others, reason = increment.labels
    if increment.name == _REFUSED:  # of verdicts and commits, which who has the key pair of a run's bucket can write
        return increment if reason in set(RefusalReason) else increment._replace(labels=(*others, OTHER))
    is_shown = reason in reasons or (len(reasons) < MOST_REASONS and _REASON.fullmatch(reason))
    return increment if is_shown else increment._replace(labels=(*others, OTHER))


def counter_series(totals: Totals, namespaces: Collection[str], sites: Collection[tuple[str, str]]) -> Iterator[Sample]:
    """The counters of these namespaces, and of these sites by namespace and name; what others had is left out."""
    for labels, value in totals.get(_ATTEMPTS, {}).items():
        namespace, site, *_ = labels
        if (namespace, site) in sites or (not site and namespace in namespaces):
            yield Sample(_ATTEMPTS, labels, value)
    for name, known in _KNOWN.items():
        counted = {labels: value for labels, value in totals.get(name, {}).items() if labels[0] in namespaces}
        zeros = {(namespace, *labels): 0.0 for namespace in namespaces for labels in known}
        yield from (Sample(name, labels, value) for labels, value in (zeros | counted).items())
