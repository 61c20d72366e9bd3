"""The stages of an export: it is tried on the untouched base before any site trains, and made after the last round."""

from fedpipe_operator.api import Reason
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.rounds.actions import StartDryExport, StartExport
from fedpipe_operator.rounds.attempts import Active, Done, Dropped, Pending, Work
from fedpipe_operator.rounds.export_files import DRY_EXPORT_ROUND, covers_export
from fedpipe_operator.rounds.model_claims import export_problem
from fedpipe_operator.rounds.policies import exported_round
from fedpipe_operator.rounds.stages import Step, fail
from fedpipe_operator.rounds.work_states import StageContext, is_to_renew, state_of


def try_export(context: StageContext) -> Step | None:
    """Try the export on the untouched base, before any site trains: nothing of it may fail for the first time after the last round.

    A run that an earlier version of the operator began is tried before its export.
    """
    has_begun = context.observed.updates and any(context.observed.updates.values())
    if context.observed.last_round or has_begun or any(one.job.kind is TaskKind.TRAIN for one in context.observed.jobs.values()):
        return None
    return _dry_export(context)


def _dry_export(context: StageContext) -> Step | None:
    if not (context.run.spec.export.adapter or context.run.spec.export.merged):
        return None
    found = context.observed.dry_exports
    outdated = {attempt for attempt, result in found.items() if not covers_export(context.run.spec, result)}
    match state_of(context, Work(TaskKind.DRY_EXPORT, round=DRY_EXPORT_ROUND), found, outdated):
        case Pending() if problem := export_problem(context.run):
            return fail(Reason.EXPORT_IMPOSSIBLE, problem)
        case Pending(attempt):
            return Step(Reason.TRYING_EXPORT, "on the untouched base", (StartDryExport(attempt),))
        case Active(attempt, job, waits_for) as active:
            again = (StartDryExport(attempt),) if is_to_renew(context, active) else ()
            return Step(Reason.TRYING_EXPORT, waits_for or "on the untouched base", again, frozenset({job}))
        case Dropped(why):
            return fail(Reason.EXPORT_IMPOSSIBLE, f"the export was tried on the untouched base, before any site trains for it: {why}")
        case Done():
            return None


def export(context: StageContext) -> Step | None:
    """Export the best round's global adapter, if the spec asks for an export."""
    if not (context.run.spec.export.adapter or context.run.spec.export.merged):
        return None
    return _dry_export(context) or _export(context)


def _export(context: StageContext) -> Step | None:
    round_ = exported_round(context.run.spec, context.observed.evaluations)
    match state_of(context, Work(TaskKind.EXPORT), context.observed.exports, _earlier_exports(context, round_)):
        case Pending() if problem := export_problem(context.run):
            return fail(Reason.EXPORT_FAILED, problem)
        case Pending(attempt):
            return Step(Reason.EXPORTING, f"round {round_}", (StartExport(round_, attempt),))
        case Active(attempt, job, waits_for) as active:
            again = (StartExport(round_, attempt),) if is_to_renew(context, active) else ()
            return Step(Reason.EXPORTING, waits_for or f"round {round_}", again, frozenset({job}))
        case Dropped(why):
            return fail(Reason.EXPORT_FAILED, why)
        case Done():
            return None


def _earlier_exports(context: StageContext, round_: int) -> set[int]:
    """The attempts that exported another round: those of a run that had ended, and that this one continues with more rounds.

    What a Job of this run reports always counts, whatever round it names, so that a wrong result does not start one attempt after another.
    """
    own = {one.job.attempt for one in context.observed.jobs.values() if one.job.kind is TaskKind.EXPORT}
    return {attempt for attempt, result in context.observed.exports.items() if result.round != round_ and attempt not in own}
