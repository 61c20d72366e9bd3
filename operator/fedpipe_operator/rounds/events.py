"""The events of a run: what is new since the status that was written last. Each is one sentence of bounded length."""

from collections.abc import Mapping, Sequence
from typing import Final

from fedpipe_operator import names
from fedpipe_operator.api import TRACKED, ConditionStatus, ConditionType, FineTuneStatus, Reason, RoundStatus, primary_metric
from fedpipe_operator.formatting import counted
from fedpipe_operator.rounds.actions import Event
from fedpipe_operator.rounds.policies import count_of, has_quorum
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.rounds.replanning import REPLANNED, REPLANNED_EVENT
from fedpipe_operator.rounds.work_states import StageContext

_ROOM: Final = 800
"""Characters of the sites' notes in an event, of which Kubernetes keeps 1,024."""
_NAMES: Final = 5
"""Sites that a note names."""
_KINDS: Final = (ConditionType.PROGRESSING, ConditionType.COMPLETE, ConditionType.FAILED, ConditionType.SUSPENDED)
"""Conditions whose new reasons are recorded as events."""


def events_of(context: StageContext, after: FineTuneStatus) -> tuple[Event, ...]:
    """What is new in the status after a step: conditions that became true or changed their reason, rounds that were finished or planned."""
    before = context.run.resource.status
    known = {(condition.type, condition.reason) for condition in before.conditions}
    changes = [
        Event(condition.reason, condition.message, warning=condition.type == ConditionType.FAILED)
        for condition in after.conditions
        if condition.status is ConditionStatus.TRUE and condition.type in _KINDS and (condition.type, condition.reason) not in known
    ]
    finished_before = {entry.round for entry in before.history}
    dropped = [{}, *(entry.dropped_rows for entry in after.history)]
    rounds = [
        _round_event(context, entry, last)
        for entry, last in zip(after.history, dropped, strict=False)
        if entry.round not in finished_before
    ]
    changes += tracking_events(before, after)
    plan = context.observed.plan
    planned = _plan_events(context, plan) if plan is not None and before.round < plan.round == after.round else ()
    return (*rounds, *planned, *changes)


def tracking_events(before: FineTuneStatus, after: FineTuneStatus) -> list[Event]:
    """That a tracker cannot be written, once for each reason in a row."""
    failures = [
        {one.reason: one.message for one in status.conditions if one.type == TRACKED and one.status is ConditionStatus.FALSE}
        for status in (before, after)
    ]
    return [Event(reason, message, warning=True) for reason, message in failures[1].items() if reason not in failures[0]]


def _round_event(context: StageContext, entry: RoundStatus, dropped_before: Mapping[str, int]) -> Event:
    """That a round is finished, and which updates and evaluations it lacks, and rows, if it lacks others than the round before."""
    evaluation, metric = context.observed.evaluations[entry.round], primary_metric(context.run.spec)
    notes = [
        *(f"{site}: {why}" for site, why in sorted(entry.left_out.items())),
        *(f"{site}: {what}" for site, what in sorted(entry.clipped.items())),
        *(f"{site}: {_dropped(rows)}" for site, rows in sorted(entry.dropped_rows.items()) if rows != dropped_before.get(site)),
        *(f"{site} did not evaluate: {why}" for site, why in sorted(entry.missing_evaluations.items())),
    ]
    at_sites = counted(count_of(evaluation, metric), "site")
    few = f"; {metric} was measured at {at_sites} and decides nothing: the quorum is {evaluation.needed}"
    missing = f"; {_as_many_as_fit(notes, 'status.history')}" if notes else ""
    message = f"round {entry.round}: {entry.updates} updates{'' if has_quorum(evaluation, metric) else few}{missing}"
    return Event("RoundCompleted", message, warning=bool(notes))


def _dropped(rows: int) -> str:
    return f"{counted(rows, 'training row')} dropped, whose labels fewer than two sites have: declare task.labels in a new run to keep them"


def _plan_events(context: StageContext, plan: RoundPlan) -> tuple[Event, ...]:
    """Which sites a new round plans anew for what the last one showed or for what changed, and which it is the first to leave out."""
    anew = {site: note for site, one in plan.plans.items() for note in one.why if note.startswith(REPLANNED)}
    last = context.observed.plans.get(plan.round - 1)
    left_out = {site: why for site, why in plan.excluded.items() if last is None or site not in last.excluded}
    odd_labels = plan.label_notes if last is None else ()  # those of the first round are those of the run
    events = (
        Event(REPLANNED_EVENT, _of_sites(plan, anew, "status.plans")),
        Event(Reason.SITES_LEFT_OUT, _of_sites(plan, left_out, "status.excluded"), warning=True),
        Event(Reason.LABELS_DIFFER, _as_many_as_fit(odd_labels, f"the condition {ConditionType.PLANNED}"), warning=True),
    )
    return tuple(event for event, found in zip(events, (anew, left_out, odd_labels), strict=True) if found)


def _of_sites(plan: RoundPlan, notes: Mapping[str, str], where: str) -> str:
    """The notes on sites of a round's plan; those with the same note are one."""
    sites: dict[str, list[str]] = {}
    for site, note in sorted(notes.items()):
        sites.setdefault(note, []).append(site)
    listed = [f"{_named(same)}: {note}" for note, same in sites.items()]
    return f"round {plan.round}: {_as_many_as_fit(listed, f'{where}, or {names.round_plan(plan.round)} in the store')}"


def _named(sites: Sequence[str]) -> str:
    more = f" and {len(sites) - _NAMES} more" if len(sites) > _NAMES else ""
    return ", ".join(sites[:_NAMES]) + more


def _as_many_as_fit(notes: Sequence[str], where: str) -> str:
    """The notes that an event has room for, at least one, and how many more there are."""
    fitting = [i for i in range(1, len(notes) + 1) if len("; ".join(notes[:i])) <= _ROOM]
    shown = max(fitting, default=1)
    more = f"; and {len(notes) - shown} more: see {where}" if shown < len(notes) else ""
    return "; ".join(notes[:shown])[:_ROOM] + more
