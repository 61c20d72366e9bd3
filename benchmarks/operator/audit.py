"""The API server's audit log, read: what the operator asked, and how soon it did something about a Job that had ended.

A Job has ended when the Job controller last wrote its status after its pod had ended (it sets the condition Complete then). The
operator has done something about it with the first write that shows it: a status that counts so many sites of the stage, or that of
a later stage, or a Job of one. Other Jobs' ends are told apart by counting: a status written for one of them is no answer to this one.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from objects import OPERATOR


@dataclass(frozen=True)
class Reaction:
    """How soon something was done about a Job's end."""

    kind: str
    seconds: float


Mark = tuple[float, int, int]
"""How far a run is: the round, the stage in it, and the sites that are done with the stage."""

_NAME = re.compile(r"^(?P<run>.+?)-(?P<kind>profile|train|evaluate|export)(?:-r(?P<round>\d+))?(?:-site-\d+)?-a\d+$")
_STAGES = {"profile": 0, "train": 0, "aggregate": 1, "evaluate": 2}
_REASONS = {"Profiling": "profile", "Training": "train", "Aggregating": "aggregate", "Evaluating": "evaluate"}
_LAST = (10.0**6, 0, 0)
_LAST_SECONDS = 30.0
"""Jobs that end in the last of them may well not be acted on any more."""
_DONE = re.compile(r"^(\d+) of \d+")


@dataclass
class Log:
    """What was read."""

    calls: Counter[str] = field(default_factory=Counter)
    """The operator's, by verb and kind; watches apart."""
    watches: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Those among them that were answered by an error."""
    ends: dict[str, float] = field(default_factory=dict)
    """Of Jobs, by name."""
    marks: dict[str, list[tuple[Mark, float]]] = field(default_factory=lambda: defaultdict(list))
    """How far the operator's writes say that each run is, and when."""


def read(file: Path) -> Log:
    """The whole log."""
    log = Log()
    for entry in _entries(file):
        at = datetime.fromisoformat(entry["stageTimestamp"]).timestamp()
        if entry["user"]["username"] != OPERATOR:
            name = entry["objectRef"]["name"]
            log.ends[name] = max(at, log.ends.get(name, 0.0))
        elif entry["stage"] == "ResponseComplete":
            _note_call(log, entry, at)
    return log


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    with file.open() as lines:
        for line in lines:
            yield json.loads(line)


def _note_call(log: Log, entry: Mapping[str, Any], at: float) -> None:
    about, code = entry.get("objectRef"), entry.get("responseStatus", {}).get("code", 0)
    if entry["verb"] == "watch":
        log.watches += 1
        return
    kind = "/".join(about[part] for part in ("resource", "subresource") if part in about) if about else entry["requestURI"].split("?")[0]
    log.calls[f"{entry['verb']} {kind}"] += 1
    if code >= 400:  # noqa: PLR2004 -- HTTP's own number
        log.refused[f"{entry['verb']} {kind}: {code}"] += 1
    elif about and entry["verb"] in ("create", "patch"):
        _note_write(log, kind, about.get("name", ""), entry, at)


def _note_write(log: Log, kind: str, name: str, entry: Mapping[str, Any], at: float) -> None:
    if kind == "federatedfinetunes/status":
        mark = _told(entry["requestObject"][0]["value"])
        if mark is not None:
            log.marks[name].append((mark, at))
    elif kind == "jobs" and (found := _NAME.match(name)):
        log.marks[found["run"]].append((_stage_of(found), at))


def _told(status: Mapping[str, Any]) -> Mark | None:
    """How far a status says that its run is; None where it says nothing of it."""
    conditions = {one["type"]: one for one in status["conditions"]}
    if conditions["Complete"]["status"] == "True":
        return (_LAST[0], 0, 1)
    told = conditions["Progressing"]
    if told["reason"] == "Exporting":
        return _LAST
    if told["reason"] not in _REASONS:
        return None
    done = _DONE.match(told.get("message", ""))
    round_ = -1.0 if told["reason"] == "Profiling" else float(status.get("round", 0))
    return (round_, _STAGES[_REASONS[told["reason"]]], int(done[1]) if done else 0)


def _stage_of(job: re.Match[str]) -> Mark:
    if job["kind"] == "export":
        return _LAST
    return (-1.0 if job["kind"] == "profile" else float(job["round"] or 0), _STAGES[job["kind"]], 0)


def reactions(log: Log, reported: Mapping[str, float]) -> list[Reaction]:
    """Of each Job: after how many seconds a write showed its end; 0 where one had before (its result was there).

    `reported` says when the pods ended, by the Job's name. What the operator did not get to before the measurement ended is left out.
    """
    stages: dict[tuple[str, str, Mark], list[float]] = defaultdict(list)
    until = max(log.ends.values(), default=0.0) - _LAST_SECONDS
    for name, at in log.ends.items():
        if reported.get(name, at) < at < until and (found := _NAME.match(name)):
            stages[found["run"], found["kind"], _stage_of(found)].append(at)
    found_all = []
    for (run, kind, stage), ends in stages.items():
        marks = sorted(log.marks[run], key=lambda pair: pair[1])
        for number, end in enumerate(sorted(ends), 1):
            wanted = (*stage[:2], number)
            shown = next((at for mark, at in marks if mark >= wanted), until + _LAST_SECONDS)
            found_all.append(Reaction(kind, max(0.0, shown - end)))
    return found_all
