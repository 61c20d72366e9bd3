"""Reads the API server's audit log: the operator's calls, and its reaction time to the end of a Job.

A Job ends with the Job controller's last write of its status after its pod has ended, which sets the condition Complete. The operator's
reaction is the first write that shows this end: a status that counts at least as many sites of the stage, the status of a later
stage, or a Job of a later stage. Counting tells Jobs apart: a status that was written for an earlier end is no reaction to this one.
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
    """The time from a Job's end to the operator's reaction."""

    kind: str
    seconds: float


Mark = tuple[float, int, int]
"""The progress of a run: the round, its stage, and the number of sites that are done with the stage."""

_NAME = re.compile(r"^(?P<run>.+?)-(?P<kind>profile|dry-export|train|evaluate|export)(?:-r(?P<round>\d+))?(?:-site-\d+)?-a\d+$")
_STAGES = {"profile": 0, "train": 0, "aggregate": 1, "evaluate": 2}
_REASONS = {"Profiling": "profile", "Training": "train", "Aggregating": "aggregate", "Evaluating": "evaluate"}
_LAST = (10.0**6, 0, 0)
_LAST_SECONDS = 30.0
"""Jobs that end in these last seconds are left out: the operator may not react before the measurement ends."""
_DONE = re.compile(r"^(\d+) of \d+")


@dataclass
class Log:
    """The contents of the audit log."""

    calls: Counter[str] = field(default_factory=Counter)
    """The operator's calls by verb and kind, without watches."""
    watches: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """The calls that were answered with an error."""
    ends: dict[str, float] = field(default_factory=dict)
    """When each Job ended, by its name."""
    marks: dict[str, list[tuple[Mark, float]]] = field(default_factory=lambda: defaultdict(list))
    """The progress of each run by the operator's writes, with their times."""


def read(file: Path) -> Log:
    """Read the whole log."""
    log = Log()
    for entry in _entries(file):
        at = datetime.fromisoformat(entry["stageTimestamp"]).timestamp()
        if entry["user"]["username"] != OPERATOR:
            name = entry["objectRef"]["name"]
            log.ends[name] = max(at, log.ends.get(name, 0.0))
        elif entry["stage"] == "ResponseComplete":
            _count_call(log, entry, at)
    return log


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    with file.open() as lines:
        for line in lines:
            yield json.loads(line)


def _count_call(log: Log, entry: Mapping[str, Any], at: float) -> None:
    about, code = entry.get("objectRef"), entry.get("responseStatus", {}).get("code", 0)
    if entry["verb"] == "watch":
        log.watches += 1
        return
    kind = "/".join(about[part] for part in ("resource", "subresource") if part in about) if about else entry["requestURI"].split("?")[0]
    log.calls[f"{entry['verb']} {kind}"] += 1
    if code >= 400:  # noqa: PLR2004 -- HTTP's first error code
        log.errors[f"{entry['verb']} {kind}: {code}"] += 1
    elif about and entry["verb"] in ("create", "patch"):
        _record_write(log, kind, about.get("name", ""), entry, at)


def _record_write(log: Log, kind: str, name: str, entry: Mapping[str, Any], at: float) -> None:
    if kind == "federatedfinetunes/status":
        mark = _progress(entry["requestObject"][0]["value"])
        if mark is not None:
            log.marks[name].append((mark, at))
    elif kind == "jobs" and (found := _NAME.match(name)):
        log.marks[found["run"]].append((_stage_of(found), at))


def _progress(status: Mapping[str, Any]) -> Mark | None:
    """The progress that a status reports; None if it reports none."""
    conditions = {one["type"]: one for one in status["conditions"]}
    if conditions["Complete"]["status"] == "True":
        return (_LAST[0], 0, 1)
    progressing = conditions["Progressing"]
    if progressing["reason"] == "Exporting":
        return _LAST
    if progressing["reason"] not in _REASONS:
        return None
    done = _DONE.match(progressing.get("message", ""))
    round_ = -1.0 if progressing["reason"] == "Profiling" else float(status.get("round", 0))
    return (round_, _STAGES[_REASONS[progressing["reason"]]], int(done[1]) if done else 0)


def _stage_of(job: re.Match[str]) -> Mark:
    if job["kind"] == "export":
        return _LAST
    if job["kind"] == "dry-export":  # between the profiles and the first training
        return (0.0, 0, 0)
    return (-1.0 if job["kind"] == "profile" else float(job["round"] or 0), _STAGES[job["kind"]], 0)


def reactions(log: Log, reported: Mapping[str, float]) -> list[Reaction]:
    """The reaction time to the end of each Job; 0 if a write showed it earlier, since its result was in the store.

    `reported` has the times when the pods ended, by the Job's name. Jobs without a reaction before the end of the measurement are left out.
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
