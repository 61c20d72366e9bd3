"""What `fedpipe logs --follow` does: which pods it reads, from where on, and which lines of what it reads are new. Pure.

A log is read again and again, each time from the second of the last line on, as the API server counts in seconds.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

Body = Mapping[str, Any]

OPERATOR_LABELS: Final = {"app.kubernetes.io/component": "operator"}
_CHART: Final = ("helm.sh/chart", "fedpipe-")
"""The label of the chart's pods, and how its value begins: others have operators, too."""
_ENDED: Final = ("Succeeded", "Failed")
_SECOND: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ")
_POLL_SECONDS: Final = 2.0
_LOGS_PER_SECOND: Final = 20
LEFT_OUT: Final = "(lines are left out: more were written within a second than can be shown)"


class Line(NamedTuple):
    """A line of a log."""

    time: str
    """As the kubelet writes it; empty: it wrote none."""
    text: str


@dataclass(frozen=True)
class Position:
    """How far a log was read."""

    since: str = ""
    """The second of the last line; empty: nothing was read."""
    last: str = ""
    """The last line, with its time."""


def read_on(log: str, at: Position, *, is_cut: bool, is_whole: bool) -> tuple[list[Line], Position]:
    """The new lines of a log, and how far it is read then.

    Args:
        log: with times, from the position's second on.
        at: how far it was read before.
        is_cut: whether more was written than `log` has.
        is_whole: whether nothing will be added to it; else its end may be the beginning of a line.
    """
    *lines, rest = log.split("\n")
    if rest and is_whole and not is_cut:
        lines.append(rest)
    new = _after(lines, at.last)
    since = at.since or _second(log)
    if is_cut and since and (not new or (at.last and at.last not in lines)):
        return [Line(since, LEFT_OUT)], Position(_next(since))
    if not new:
        return [], at
    return [_line(one) for one in new], Position(_second(new[-1]), new[-1])


def _after(lines: Sequence[str], last: str) -> list[str]:
    """The lines after the last one that is `last`; all of them if none is, as in the log of a container that was started again."""
    before = max((index for index, line in enumerate(lines) if line == last), default=-1) if last else -1
    return list(lines[before + 1 :])


def _line(raw: str) -> Line:
    time, _, text = raw.partition(" ")
    return Line(time, text) if _SECOND.match(raw) else Line("", raw)


def _second(raw: str) -> str:
    found = _SECOND.match(raw)
    return f"{found[1]}{found[2]}" if found else ""


def _next(second: str) -> str:
    return (datetime.fromisoformat(second) + timedelta(seconds=1)).isoformat()


def is_readable(pod: Body, container: str) -> bool:
    """Whether the container has a log: before it starts, a request for its log is an error."""
    return has_ended(pod, container) or "running" in _state(pod, container)


def has_ended(pod: Body, container: str) -> bool:
    """Whether the container writes nothing more: it ended, whatever was injected beside it does."""
    return (pod.get("status") or {}).get("phase") in _ENDED or "terminated" in _state(pod, container)


def _state(pod: Body, container: str) -> Body:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    found: Body = next((one.get("state") or {} for one in statuses if one.get("name") == container), {})
    return found


def is_operator(pod: Body) -> bool:
    """Whether the pod is one of this chart's operators."""
    name, begin = _CHART
    return str(pod["metadata"].get("labels", {}).get(name, "")).startswith(begin)


def about_run(lines: Sequence[Line], uid: str) -> Iterator[Line]:
    """The lines of an operator's log that are about this run, in either format."""
    return (line for line in lines if _uid_of(line.text) == uid or f" uid={uid} " in f"{line.text.rpartition(' |')[2]} ")


def _uid_of(text: str) -> object:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document.get("uid") if isinstance(document, dict) else None


def pause_seconds(logs: int) -> float:
    """How long to wait after having read this many logs: no more of them a second than an API server does not notice."""
    return max(_POLL_SECONDS, logs / _LOGS_PER_SECOND)
