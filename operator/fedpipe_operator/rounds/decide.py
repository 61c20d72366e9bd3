"""`decide`: the whole life of a run on one screen. Pure: no clock, no chance, no I/O.

It is called again and again with what was observed (`Observed`) and the time, and returns the next step (`Decision`).
It keeps no state: after its actions and status are applied, and nothing else happened, it asks for no further action.

    profile ──▶ ┌ plan ──▶ evaluate the last adapter (or the base), then train ──▶ aggregate ┐ ──▶ evaluate the last ──▶ export
                └────────── until `end_reason_of` gives one, also in the middle of a round ──┘

Between the plan of round 1 and its trainings, the export is tried on the untouched base.
"""

from fedpipe_operator.api import ConditionStatus, ConditionType, FederatedFineTune, Reason, parse_duration
from fedpipe_operator.backend import ACTIVE_STATES
from fedpipe_operator.rounds.actions import AbortUploads, Decision, Discard
from fedpipe_operator.rounds.consent import missing_for_rule_of, missing_sites
from fedpipe_operator.rounds.deadlines import next_end
from fedpipe_operator.rounds.events import events_of
from fedpipe_operator.rounds.export_files import large_files
from fedpipe_operator.rounds.export_stages import export, try_export
from fedpipe_operator.rounds.observed import Observed, Run
from fedpipe_operator.rounds.progress import settled
from fedpipe_operator.rounds.stages import (
    End,
    Step,
    aggregate,
    end_reason_of,
    evaluate,
    evaluate_last,
    fail_evaluated,
    plan,
    profile,
    train,
)
from fedpipe_operator.rounds.status import status_of
from fedpipe_operator.rounds.work_states import StageContext


def decide(run: Run, observed: Observed, now: float) -> Decision:
    """The next step of a run.

    Args:
        run: the spec, and the sites that match its selector.
        observed: the store and the jobs.
        now: the time in Unix seconds.
    """
    if is_over(run.resource):
        return Decision(run.resource.status, _discards(observed, frozenset()))
    context = StageContext(run, observed, now)
    step = _next_step(context)
    uploads = _abandoned_uploads(context) if step.end else ()
    status = settled(run.resource.status, status_of(context, step), now)
    return Decision(
        status=status,
        actions=step.actions + _discards(observed, step.wanted) + uploads,
        events=events_of(context, status),
        requeue_at=None if step.end or run.spec.suspend else _next_deadline(context),
    )


def _next_step(context: StageContext) -> Step:
    """The step of the first stage that is not done."""
    if context.run.spec.suspend:
        return Step(Reason.SUSPENDED_BY_SPEC, "set spec.suspend to false to continue in the same round")
    end_reason = end_reason_of(context)
    if end_reason is not None:
        return export(context) or Step(end_reason, f"after round {max(context.observed.evaluations)}", end=End.COMPLETE)
    if context.is_trained:
        return evaluate_last(context)
    if not context.is_planned and (missing := _missing_sites(context)) is not None:
        return _wait_for_sites(context, *missing)
    return next(step for stage in (profile, plan, try_export, evaluate, train, aggregate) if (step := stage(context)) is not None)


def _missing_sites(context: StageContext) -> tuple[Reason, str] | None:
    """Why the next round cannot have the sites that it needs, before any of them works for it; None if it can."""
    if not context.run.sites:
        return Reason.NO_SITES, "no EdgeSite of this namespace carries the labels of sites.selector: create one, or correct the selector"
    if message := missing_sites(context.run, context.left_out):
        return Reason.TOO_FEW_SITES, message
    message = missing_for_rule_of(context.run, context.left_out)
    return (Reason.RULE_OUT_OF_REACH, message) if message else None


def _wait_for_sites(context: StageContext, reason: Reason, message: str) -> Step:
    """Wait for sites until the deadline: they may be applied after the run, and a policy may be changed."""
    over = context.now >= max(context.observed.resumed_at, context.observed.last_round_ended_at) + parse_duration(
        context.run.spec.rounds.deadline
    )
    return fail_evaluated(context, reason, message) if over else Step(reason, message)


def is_over(resource: FederatedFineTune) -> bool:
    """Whether the run's status says that it is complete or failed: no action is taken for it any more."""
    ends = (ConditionType.COMPLETE, ConditionType.FAILED)
    return any(one.type in ends and one.status is ConditionStatus.TRUE for one in resource.status.conditions)


def _discards(observed: Observed, wanted: frozenset[str]) -> tuple[Discard, ...]:
    """Active jobs whose result is not wanted any more: late ones, those of a round after the run's last, and of a run that is suspended."""
    kept = wanted | observed.reported
    return tuple(Discard(name) for name, job in sorted(observed.jobs.items()) if job.state in ACTIVE_STATES and name not in kept)


def _abandoned_uploads(context: StageContext) -> tuple[AbortUploads, ...]:
    """At the end of a run, after the jobs that upload are ended: parts of an export's files that no attempt has finished."""
    keys = tuple(key for found in context.observed.dry_exports.values() for key in large_files(found))
    return (AbortUploads(keys),) if keys else ()


def _next_deadline(context: StageContext) -> float:
    """When the first active job runs out of time; a whole deadline from now if none is active."""
    ends_at = next_end(context.run, context.observed)
    return ends_at if ends_at is not None else context.now + parse_duration(context.run.spec.rounds.deadline)
