"""The run's status: conditions and figures, made anew from one look and the step it led to. Lists are bounded."""

from collections.abc import Sequence

from fedpipe_operator import names
from fedpipe_operator.api import (
    Condition,
    ConditionStatus,
    ConditionType,
    FineTuneStatus,
    MetricStatus,
    Reason,
    RoundStatus,
    primary_metric,
)
from fedpipe_operator.planning import plan_status
from fedpipe_operator.rounds.actions import Event
from fedpipe_operator.rounds.attempts import Done
from fedpipe_operator.rounds.conditions import Observation, conditions_of
from fedpipe_operator.rounds.observed import CommitSummary, EvaluationSummary
from fedpipe_operator.rounds.policies import metric_value
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.rounds.revision import revision_of
from fedpipe_operator.rounds.stages import End, StageContext, Step, training_states

_SENTENCE = 1024
"""Characters of a site's reason in the status: the store has all of them."""
_DIGITS = 4
"""Decimals of a metric and of a share in the status, for people; the store has all of them."""
HISTORY = 10
"""Finished rounds that the status keeps; the store has all."""


def status_of(context: StageContext, step: Step) -> FineTuneStatus:
    """The whole status after this step."""
    plan = _newest_plan(context)
    return FineTuneStatus(
        observed_generation=context.run.resource.metadata.generation,
        revision=context.run.resource.status.revision or revision_of(context.run.spec),
        conditions=_conditions(context, step),
        round=context.observed.round if step.end is None else max(context.observed.commits, default=0),
        quorum=_quorum(context),
        metric=_metric(context),
        plans=tuple(plan_status(site, plan.plans[site]) for site in sorted(plan.plans)[:100]) if plan else (),
        excluded={site: why[:_SENTENCE] for site, why in sorted(plan.excluded.items())[:100]} if plan else {},
        history=tuple(
            _history(context, round_) for round_ in sorted(context.observed.commits)[-HISTORY:] if round_ in context.observed.evaluations
        ),
        export=names.EXPORT_ADAPTER if step.end is End.SUCCEEDED and context.run.spec.export.adapter else "",
    )


def events_of(before: FineTuneStatus, after: FineTuneStatus) -> tuple[Event, ...]:
    """What is new between two statuses: conditions that changed their reason, and rounds that were finished."""
    known = {(condition.type, condition.reason) for condition in before.conditions}
    told = (ConditionType.PROGRESSING, ConditionType.SUCCEEDED, ConditionType.FAILED, ConditionType.SUSPENDED)
    fresh = [
        Event(condition.reason, condition.message, warning=condition.type == ConditionType.FAILED)
        for condition in after.conditions
        if condition.status is ConditionStatus.TRUE and condition.type in told and (condition.type, condition.reason) not in known
    ]
    finished = {entry.round for entry in before.history}
    rounds = [_round_event(entry) for entry in after.history if entry.round not in finished]
    return (*rounds, *fresh)


def _round_event(entry: RoundStatus) -> Event:
    lost = "".join(f"; {site}: {why}" for site, why in sorted(entry.left_out.items()))
    return Event("RoundCompleted", f"round {entry.round}: {entry.quorum} updates{lost}", warning=bool(entry.left_out))


def _conditions(context: StageContext, step: Step) -> tuple[Condition, ...]:
    profiled = _profiled(context, step)
    planned = max(context.observed.round, 1) in context.observed.plans
    suspended = context.run.spec.suspend and step.end is None
    ended, failed = step.end is not None, step.end is End.FAILED
    succeeded = ended and not failed
    told = (
        Observation(ConditionType.VALID, True, Reason.SPEC_VALID),
        _told_profiled(context, profiled=profiled),
        Observation(ConditionType.PLANNED, planned, Reason.ROUND_PLANNED if planned else Reason.WAITING),
        Observation(ConditionType.PROGRESSING, not (ended or suspended), step.reason, step.message),
        _told_suspended(step, suspended=suspended),
        Observation(
            ConditionType.SUCCEEDED, succeeded, step.reason if succeeded else Reason.NOT_FINISHED, step.message if succeeded else ""
        ),
        Observation(ConditionType.FAILED, failed, step.reason if failed else Reason.NOT_FAILED, step.message if failed else ""),
        Observation(ConditionType.READY, succeeded, step.reason, step.message),
    )
    resource = context.run.resource
    return conditions_of(told, resource.status.conditions, generation=resource.metadata.generation, now=context.now)


def _told_suspended(step: Step, *, suspended: bool) -> Observation:
    reason = Reason.SUSPENDED_BY_SPEC if suspended else Reason.NOT_SUSPENDED
    return Observation(ConditionType.SUSPENDED, suspended, reason, step.message if suspended else "")


def _told_profiled(context: StageContext, *, profiled: bool) -> Observation:
    left_out = _excluded(context)
    reason = (Reason.SITES_LEFT_OUT if left_out else Reason.ALL_PROFILED) if profiled else Reason.PROFILING
    return Observation(ConditionType.PROFILED, profiled, reason, left_out)


def _profiled(context: StageContext, step: Step) -> bool:
    return bool(context.observed.plans) or (step.reason is not Reason.PROFILING and bool(context.observed.profiles))


def blocked(status: FineTuneStatus, reason: str, message: str, *, generation: int, now: float) -> FineTuneStatus:
    """The status of a run that cannot go on for now: what it waits for is told, and all else stays as it was. Its spec could be read."""
    waits = (Observation(ConditionType.PROGRESSING, False, reason, message), Observation(ConditionType.READY, False, reason, message))
    told = (Observation(ConditionType.VALID, True, Reason.SPEC_VALID), *waits)
    conditions = conditions_of(told, status.conditions, generation=generation, now=now)
    return status.model_copy(update={"conditions": conditions, "observed_generation": generation})


def invalid(status: FineTuneStatus, problems: Sequence[str], *, generation: int, now: float) -> FineTuneStatus:
    """The status of a run whose spec cannot be used, until the next edit mends it."""
    message = "; ".join(problems)
    kinds = ((ConditionType.VALID, False), (ConditionType.PROGRESSING, False), (ConditionType.READY, False))
    told = (Observation(kind, true, Reason.SPEC_INVALID, message) for kind, true in kinds)
    conditions = conditions_of(told, status.conditions, generation=generation, now=now)
    return status.model_copy(update={"conditions": conditions, "observed_generation": generation})


def _newest_plan(context: StageContext) -> RoundPlan | None:
    """The plan of the round under way; after the last round, that round's."""
    return context.observed.plan


def _excluded(context: StageContext) -> str:
    plan = _newest_plan(context)
    return "; ".join(f"{site} is left out: {why}" for site, why in sorted(plan.excluded.items())) if plan else ""


def _quorum(context: StageContext) -> str:
    """Updates that came, of those asked for."""
    round_ = context.observed.round
    if round_ in context.observed.plans and round_ not in context.observed.commits:
        states = training_states(context)
        return f"{sum(isinstance(one, Done) for one in states.values())}/{len(states)}"
    last = max(context.observed.commits, default=None)
    return _came(context.observed.commits[last], context) if last is not None else ""


def _came(commit: CommitSummary, context: StageContext) -> str:
    plan = context.observed.plans.get(commit.round)
    return f"{len(commit.contributions)}/{len(plan.selected) if plan else len(commit.contributions)}"


def _metric(context: StageContext) -> MetricStatus | None:
    """The newest round's value of the run's metric."""
    name = primary_metric(context.run.spec)
    for round_ in sorted(context.observed.evaluations, reverse=True):
        value = metric_value(context.observed.evaluations[round_], name)
        if value is not None:
            return MetricStatus(name=name, value=round(value, _DIGITS), round=round_)
    return None


def _history(context: StageContext, round_: int) -> RoundStatus:
    commit, evaluation = context.observed.commits[round_], context.observed.evaluations[round_]
    return RoundStatus(
        round=round_,
        quorum=_came(commit, context),
        metric=_rounded(metric_value(evaluation, primary_metric(context.run.spec))),
        loss=_rounded(evaluation.loss),
        seconds=round(_seconds(context, evaluation), 1),
        uploaded_bytes=commit.bytes_read,
        truncated_energy=round(commit.truncated_energy, _DIGITS),
        left_out=_left_out(context, commit),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _seconds(context: StageContext, evaluation: EvaluationSummary) -> float:
    """From the round's plan to its evaluation; the wall clock, pauses included."""
    plan = context.observed.plans.get(evaluation.round)
    return max(0.0, evaluation.finished_at - plan.started_at) if plan else 0.0


def _left_out(context: StageContext, commit: CommitSummary) -> dict[str, str]:
    """The round's sites whose update is not in the commit."""
    plan = context.observed.plans.get(commit.round)
    came = {contribution.site for contribution in commit.contributions}
    refused = {site: f"{verdict.reason}: {verdict.message}"[:_SENTENCE] for site, verdict in commit.refused.items()}
    absent = {
        site: commit.absent.get(site, "NoUpdate: nothing came")[:_SENTENCE] for site in (plan.selected if plan else ()) if site not in came
    }
    return dict(sorted((absent | refused).items())[:100])
