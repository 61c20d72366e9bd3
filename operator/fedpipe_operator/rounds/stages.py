"""The stages of a round. Each returns the next step, or None when it is done.

A round's global adapter is evaluated by the sites of the next round, before they train: one job, and one start of a trainer, for
both. So a round is aggregated only after the evaluation of the round before, which may end the run.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

from fedpipe_operator.api import FineTuneSpec, Reason, primary_metric
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.rounds import round_plan
from fedpipe_operator.rounds.actions import (
    Action,
    CommitEvaluation,
    CommitPlan,
    StartAggregation,
    StartEvaluation,
    StartExport,
    StartPlanning,
    StartProfile,
    StartTraining,
)
from fedpipe_operator.rounds.attempts import Active, Done, Dropped, Pending, Work, WorkState, work_state
from fedpipe_operator.rounds.evaluation import aggregate_metrics
from fedpipe_operator.rounds.observed import Observed, Run
from fedpipe_operator.rounds.policies import (
    Metrics,
    best_round,
    is_out_of_retries,
    is_patience_exhausted,
    is_target_reached,
    retry_micro_batch,
    stage_expired,
)
from fedpipe_operator.rounds.records import OutOfReach, RoundEvaluation, RoundPlan, UpdateRef
from fedpipe_trainer.contract import EvaluateResult, FailureReason, Outcome, Result


class End(Enum):
    """How a run can end."""

    COMPLETE = auto()
    FAILED = auto()


@dataclass(frozen=True)
class StageContext:
    """The input of every stage."""

    run: Run
    observed: Observed
    now: float

    @property
    def plan(self) -> RoundPlan:
        """The plan of the current round; after the last round, that round's."""
        assert self.observed.plan is not None  # noqa: S101 -- stages that use it come after the planning stage
        return self.observed.plan

    @property
    def is_trained(self) -> bool:
        """Whether all rounds are committed: what is left is the evaluation of the last adapter, and the export."""
        return self.observed.last_round >= self.run.spec.rounds.count

    @property
    def is_planned(self) -> bool:
        """Whether the current round has a plan; after the last round there is nothing more to plan."""
        return self.observed.round in self.observed.plans or self.is_trained


@dataclass(frozen=True)
class Step:
    """The next step of a run: its actions, the jobs that are still wanted, and how the status describes it."""

    reason: Reason
    message: str
    actions: tuple[Action, ...] = ()
    wanted: frozenset[str] = frozenset()
    end: End | None = None


WorkStates = Mapping[str, WorkState]

INLINE_SITES: Final = 50
"""Up to so many sites a round is planned within the reconcile, in 0.6 s of processor time; 1,000 take 3.8 s (benchmarks/planner.py), so
that a worker process plans a larger fleet."""

_NAMED: Final = 5
"""Up to so many sites are named as those that are still at work."""
_NO_SMALLER_PASS: Final = (
    f"{FailureReason.OUT_OF_MEMORY}: the kernel ended the trainer at its memory limit with a micro-batch of one sample, the smallest: give"
    " the site more memory, allow fewer bits or smaller ranks, or lower task.maxLength"
)
_GONE: Final = "SiteGone: its EdgeSite was deleted, is invalid, or no longer has the labels of sites.selector"


def fail(reason: Reason, message: str) -> Step:
    """The end of a run that cannot continue."""
    return Step(reason, message, end=End.FAILED)


def fail_evaluated(context: StageContext, reason: Reason, message: str) -> Step:
    """The end of a run that can plan no further round, but not before its last round is evaluated, which may end it with a result."""
    if context.observed.last_round in {0, *context.observed.evaluations}:
        return fail(reason, message)
    step = evaluate_last(context)
    return replace(step, message=f"{step.message}; {message}", wanted=step.wanted | _profile_jobs(context))


def profile(context: StageContext) -> Step | None:
    """Measure every site before the next plan is made."""
    if context.is_planned:
        return None
    return _work_left(context, _profiling(context), Reason.PROFILING, lambda site, pending: StartProfile(site, pending.attempt))


def plan(context: StageContext) -> Step | None:
    """Plan every site and select the round's sites; fail if too few can take part."""
    if context.is_planned:
        return None
    if context.observed.out_of_reach is not None:
        return fail_evaluated(context, Reason.QUORUM_OUT_OF_REACH, context.observed.out_of_reach.message)
    round_, profiles = context.observed.round, _profiling(context)
    if len(context.run.sites) > INLINE_SITES:
        return _plan_in_worker(context, profiles)
    without = round_plan.Unprofiled(_dropped(profiles), _expired(profiles))
    made = round_plan.round_plan(context.run, context.observed, without, round_, context.now)
    if isinstance(made, OutOfReach):
        return fail_evaluated(context, Reason.QUORUM_OUT_OF_REACH, made.message)
    return Step(Reason.ROUND_PLANNED, f"round {round_} is planned", (CommitPlan(made),))


def _plan_in_worker(context: StageContext, profiles: WorkStates) -> Step:
    """Have a worker process plan the round; the plan in the store ends this stage."""
    round_ = context.observed.round
    message = f"round {round_}, {len(profiles)} sites"
    match _work_state(context, Work(TaskKind.PLAN, round=round_), {}):
        case Pending(attempt):
            attempts = {site: done.attempt for site, done in _done(profiles).items()}
            start = StartPlanning(round_, attempt, attempts, _dropped(profiles), _expired(profiles), context.now)
            return Step(Reason.PLANNING, message, (start,), _profile_jobs(context))
        case Active(_, job, waits_for):
            message = f"{message}; waits for {waits_for}" if waits_for else message
            return Step(Reason.PLANNING, message, wanted=_profile_jobs(context) | {job})
        case Dropped(why):
            return fail_evaluated(context, Reason.PLANNING_FAILED, why)
    raise AssertionError  # a round whose plan is in the store is planned already


def _profile_jobs(context: StageContext) -> frozenset[str]:
    """The profiles that missed their deadline: until the plan says so, these jobs are the only record of that."""
    return frozenset(name for name, status in context.observed.jobs.items() if status.job.kind is TaskKind.PROFILE)


def evaluate(context: StageContext) -> Step | None:
    """Commit the federated evaluation of the last round's adapter (or the base) once no site of this round still owes its part."""
    round_ = context.observed.last_round
    if round_ in context.observed.evaluations:
        return None
    training = training_states(context)
    states = evaluation_states(context, training)
    if any(isinstance(state, Pending | Active) for state in states.values()):
        return None
    message = f"{_progress(training)}; {_subject(round_)} is evaluated"
    # The jobs of late sites end with this step, so the aggregation does not see that they were at work.
    commit = CommitEvaluation(_evaluation(context, states).model_copy(update={"late": _late(training)}))
    return Step(Reason.TRAINING, message, (commit,), _active_jobs(training))


def train(context: StageContext) -> Step | None:
    """Have the selected sites train until each is done or dropped; fail as soon as the quorum is out of reach.

    It does not fail before the last round is evaluated, which may end the run with a result.
    """
    states = training_states(context)
    dropped = _dropped(states)
    is_evaluated = context.observed.last_round in context.observed.evaluations
    if is_evaluated and len(states) - len(dropped) < context.plan.needed:
        return fail(Reason.QUORUM_OUT_OF_REACH, _too_few(context.plan, dropped))
    evaluation = {} if is_evaluated else evaluation_states(context, states)
    step = _work_left(context, states, Reason.TRAINING, lambda site, pending: _training(context, site, pending, evaluation))
    if step is None or is_evaluated:
        return step
    progress = f"{len(_done(evaluation))} of {len(evaluation)} have evaluated {_subject(context.observed.last_round)}"
    return replace(step, message=f"{step.message}; {progress}")


def aggregate(context: StageContext) -> Step:
    """Aggregate the updates that were received; the job's commit ends this stage, and the round."""
    round_ = context.observed.round
    match _work_state(context, Work(TaskKind.AGGREGATE, round=round_), {}):
        case Pending(attempt):
            states = training_states(context)
            updates = tuple(UpdateRef(site=site, attempt=done.attempt) for site, done in _done(states).items())
            absent, late = _dropped(states), {*_late(states), *_late_before(context)}
            start = StartAggregation(
                round_,
                attempt,
                updates,
                absent=absent,
                out_of_memory=tuple(site for site, state in states.items() if isinstance(state, Dropped) and state.out_of_memory),
                late=tuple(site for site in absent if site in late),
            )
            return Step(Reason.AGGREGATING, f"{len(updates)} updates", (start,))
        case Active(_, job, waits_for):
            return Step(Reason.AGGREGATING, waits_for or f"round {round_}", wanted=frozenset({job}))
        case Dropped(why):
            return fail(Reason.AGGREGATION_FAILED, why)
    raise AssertionError  # an aggregation is done when it is committed, and then another round is the current one


def _late_before(context: StageContext) -> tuple[str, ...]:
    """The sites that were late when the last round's evaluation was committed."""
    evaluation = context.observed.evaluations.get(context.observed.last_round)
    return evaluation.late if evaluation else ()


def evaluate_last(context: StageContext) -> Step:
    """Evaluate the last round's global adapter, which no further round does, and commit the federated evaluation."""
    round_ = context.observed.last_round
    states = _work_states(context, TaskKind.EVALUATE, context.plan.evaluators, context.observed.site_evaluations, round_=round_)
    step = _work_left(context, states, Reason.EVALUATING, lambda site, pending: StartEvaluation(site, round_, pending.attempt))
    return step or Step(Reason.EVALUATING, f"round {round_} is evaluated", (CommitEvaluation(_evaluation(context, states)),))


def export(context: StageContext) -> Step | None:
    """Export the best round's global adapter, if the spec asks for an export."""
    if not (context.run.spec.export.adapter or context.run.spec.export.merged):
        return None
    round_ = exported_round(context.run.spec, context.observed.evaluations)
    match _work_state(context, Work(TaskKind.EXPORT), context.observed.exports):
        case Pending(attempt):
            return Step(Reason.EXPORTING, f"round {round_}", (StartExport(round_, attempt),))
        case Active(_, job, waits_for):
            return Step(Reason.EXPORTING, waits_for or f"round {round_}", wanted=frozenset({job}))
        case Dropped(why):
            return fail(Reason.EXPORT_FAILED, why)
        case Done():
            return None


def exported_round(spec: FineTuneSpec, evaluations: Mapping[int, Metrics]) -> int:
    """The round whose global adapter is the run's result: the best by the run's metric; 0 before round 1."""
    return best_round(evaluations, primary_metric(spec))


def training_states(context: StageContext) -> WorkStates:
    """The state of each of the round's sites; one whose update the gate refused is dropped from the round."""
    states = _work_states(context, TaskKind.TRAIN, context.plan.selected, context.observed.updates, round_=context.observed.round)
    return {site: _after_verdict(context, site, _after_last_retry(context, site, state)) for site, state in states.items()}


def evaluation_states(context: StageContext, training: WorkStates) -> WorkStates:
    """The part of each of the round's evaluators in the evaluation that comes with the training, whose states are `training`.

    Any attempt's evaluation counts, also that of a site which is dropped from the training afterwards. A failed one is tried again
    only with the training.
    """
    results = context.observed.site_evaluations
    return {site: _evaluation_state(training[site], results.get(site, {})) for site in context.plan.evaluators if site in training}


def _evaluation_state(training: WorkState, results: Mapping[int, EvaluateResult]) -> WorkState:
    completed = next((attempt for attempt, result in sorted(results.items()) if result.outcome is Outcome.COMPLETED), None)
    if completed is not None:
        return Done(completed)
    if isinstance(training, Pending) or (isinstance(training, Active) and training.attempt not in results):
        return training
    failure = results[max(results)].failure if results else None
    if failure is not None:
        return Dropped(f"{failure.reason}: {failure.message}")
    return training if isinstance(training, Dropped) else Dropped("NoResult: its trainer sent an update but no evaluation")


def _after_last_retry(context: StageContext, site: str, state: WorkState) -> WorkState:
    is_last = isinstance(state, Pending) and is_out_of_retries(context.plan.plans[site].micro_batch, state.out_of_memory)
    return Dropped(_NO_SMALLER_PASS, out_of_memory=True) if is_last else state


def _after_verdict(context: StageContext, site: str, state: WorkState) -> WorkState:
    if not isinstance(state, Done):
        return state
    verdict = context.observed.verdicts.get(site, {}).get(state.attempt)
    refused = verdict is not None and not verdict.accepted
    return Dropped(f"{verdict.reason}: {verdict.message}") if verdict is not None and refused else state


def _profiling(context: StageContext) -> WorkStates:
    """Of every site. One that has changed since it was profiled is profiled again; one whose profile was given up is not."""
    found, given_up = context.observed.profiles, round_plan.given_up(context.run, context.observed)
    outdated = {
        site.name: {attempt for attempt, profile in found.get(site.name, {}).items() if round_plan.is_outdated(profile, site)}
        for site in context.run.sites
    }
    states = _work_states(context, TaskKind.PROFILE, outdated, found, round_=0, outdated=outdated)
    return {
        site: Dropped(given_up[site], is_expired=True) if site in given_up and not isinstance(state, Done) else state
        for site, state in states.items()
    }


def _work_states(  # noqa: PLR0913 -- what the states depend on
    context: StageContext,
    kind: TaskKind,
    sites: Iterable[str],
    results: Mapping[str, Mapping[int, Result]],
    *,
    round_: int,
    outdated: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> WorkStates:
    """By site. A site that is gone is dropped, unless it is done. `outdated`: attempts that do not count, by site."""
    expired = stage_expired(context.run, context.observed, kind, round_, context.now)
    states = {
        site: work_state(
            Work(kind, site, round_),
            context.run,
            context.observed,
            results=results.get(site, {}),
            expired=expired,
            outdated=outdated.get(site, ()),
        )
        for site in sites
    }
    known = {site.name for site in context.run.sites}
    return {site: state if site in known or isinstance(state, Done) else Dropped(_GONE) for site, state in states.items()}


def _work_state(context: StageContext, work: Work, results: Mapping[int, Result]) -> WorkState:
    expired = stage_expired(context.run, context.observed, work.kind, work.round, context.now)
    return work_state(work, context.run, context.observed, results=results, expired=expired)


def _training(context: StageContext, site: str, pending: Pending, evaluation: WorkStates) -> StartTraining:
    micro_batch = retry_micro_batch(context.plan.plans[site].micro_batch, pending.out_of_memory)
    return StartTraining(site, context.observed.round, pending.attempt, micro_batch, evaluates=isinstance(evaluation.get(site), Pending))


def _work_left(context: StageContext, states: WorkStates, reason: Reason, start: Callable[[str, Pending], Action]) -> Step | None:
    """Start pending tasks at sites with a free job slot, and wait for active ones; None when every site is done or dropped."""
    pending = {site: one for site, one in states.items() if isinstance(one, Pending)}
    active = {site: one for site, one in states.items() if isinstance(one, Active)}
    if not pending and not active:
        return None
    waits = {site: context.observed.busy[site] for site in pending if site in context.observed.busy}
    actions = tuple(start(site, one) for site, one in pending.items() if site not in waits)
    waits |= {site: one.waits_for for site, one in active.items() if one.waits_for}
    waiting = "".join(f"; {site} waits for {what}" for site, what in sorted(waits.items()))
    stragglers = _stragglers((pending.keys() | active.keys()) - waits.keys(), len(_done(states)))
    return Step(reason, f"{_progress(states)}{stragglers}{waiting}", actions, _active_jobs(states))


def _progress(states: WorkStates) -> str:
    return f"{len(_done(states))} of {len(states)} sites done"


def _stragglers(at_work: Collection[str], done: int) -> str:
    """Names the sites that are still at work, once as many are done and few are left."""
    return f"; {', '.join(sorted(at_work))} at work" if 0 < len(at_work) <= min(done, _NAMED) else ""


def _subject(round_: int) -> str:
    return f"round {round_}" if round_ else "the base"


def _active_jobs(states: WorkStates) -> frozenset[str]:
    return frozenset(one.job for one in states.values() if isinstance(one, Active))


def _evaluation(context: StageContext, states: WorkStates) -> RoundEvaluation:
    results = {site: context.observed.site_evaluations[site][done.attempt] for site, done in _done(states).items()}
    evaluation = aggregate_metrics(context.observed.last_round, results, _dropped(states), context.now)
    return evaluation.model_copy(update={"needed": context.plan.needed})


def _done(states: WorkStates) -> dict[str, Done]:
    return {site: done for site, done in states.items() if isinstance(done, Done)}


def _expired(states: WorkStates) -> tuple[str, ...]:
    return tuple(site for site, state in states.items() if isinstance(state, Dropped) and state.is_expired)


def _late(states: WorkStates) -> tuple[str, ...]:
    return tuple(site for site, state in states.items() if isinstance(state, Dropped) and state.is_late)


def _dropped(states: WorkStates) -> dict[str, str]:
    return {site: dropped.why for site, dropped in states.items() if isinstance(dropped, Dropped)}


def _too_few(round_plan: RoundPlan, dropped: Mapping[str, str]) -> str:
    lost = "; ".join(f"{site}: {why}" for site, why in sorted((dict(round_plan.excluded) | dict(dropped)).items()))
    return f"round {round_plan.round} needs {round_plan.needed} updates of {len(round_plan.selected)} sites; lost: {lost}"


def end_reason_of(context: StageContext) -> Reason | None:
    """Why the run ends with the last evaluated round; None while a further round is wanted."""
    evaluations, rounds = context.observed.evaluations, context.run.spec.rounds
    last = max(evaluations, default=0)
    if last == 0:
        return None
    if is_target_reached(rounds.target, evaluations[last]):
        return Reason.TARGET_REACHED
    if is_patience_exhausted(rounds.patience, evaluations, primary_metric(context.run.spec)):
        return Reason.PATIENCE_EXHAUSTED
    return Reason.ROUNDS_COMPLETED if last >= rounds.count else None
