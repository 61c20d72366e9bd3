"""The stages of a round. Each returns the next step, or None when it is done.

A round's global adapter is evaluated by the sites of the next round, before they train: one job, and one start of a trainer, for
both. So a round is aggregated only after the evaluation of the round before, which may end the run.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from fedpipe_operator.admission import hash_of
from fedpipe_operator.api import Reason, primary_metric
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.rounds import round_plan
from fedpipe_operator.rounds.actions import (
    Action,
    CommitEvaluation,
    CommitExpiredProfiles,
    CommitPlan,
    StartAggregation,
    StartEvaluation,
    StartPlanning,
    StartProfile,
    StartTraining,
)
from fedpipe_operator.rounds.attempts import Active, Dropped, Pending, Work
from fedpipe_operator.rounds.evaluation import SiteBounds, aggregate_metrics
from fedpipe_operator.rounds.policies import (
    is_patience_exhausted,
    is_target_reached,
    out_of_reach,
    retry_micro_batch,
    smallest_pass,
    with_planned_rule,
)
from fedpipe_operator.rounds.records import (
    ExpiredProfile,
    ExpiredProfiles,
    OutOfReach,
    RoundEvaluation,
    UpdateRef,
    Verdict,
    verdict_of,
)
from fedpipe_operator.rounds.work_states import (
    StageContext,
    WorkStates,
    active_jobs,
    done_of,
    dropped_of,
    evaluation_states,
    expired_jobs,
    is_to_renew,
    late_sites,
    profiling_states,
    state_of,
    states_of,
    training_states,
    tried_sites,
)


class End(Enum):
    """How a run can end."""

    COMPLETE = auto()
    FAILED = auto()


@dataclass(frozen=True)
class Step:
    """The next step of a run: its actions, the jobs that are still wanted, and how the status describes it."""

    reason: Reason
    message: str
    actions: tuple[Action, ...] = ()
    wanted: frozenset[str] = frozenset()
    end: End | None = None
    work: WorkStates = field(default_factory=dict)
    """By site that the stage waits for, or has waited for: how far it is."""


INLINE_SITES: Final = 50
"""Up to so many sites a round is planned within the reconcile, in 0.6 s of processor time; 1,000 take 3.8 s (benchmarks/planner.py), so
that a worker process plans a larger fleet."""

_NAMED: Final = 5
"""Up to so many sites are named as those that are still at work."""


def fail(reason: Reason, message: str) -> Step:
    """The end of a run that cannot continue."""
    return Step(reason, message, end=End.FAILED)


def fail_evaluated(context: StageContext, reason: Reason, message: str) -> Step:
    """The end of a run that can plan no further round, but not before its last round is evaluated, which may end it with a result."""
    if context.observed.last_round in {0, *context.observed.evaluations}:
        return fail(reason, message)
    expired = _expired_profiles(context)
    if expired.sites and context.observed.expired_profiles is None:
        commit = CommitExpiredProfiles(context.observed.round, expired)
        return Step(Reason.EVALUATING, message, (commit,), _profile_jobs(context))
    step = evaluate_last(context)
    return replace(step, message=f"{step.message}; {message}", wanted=step.wanted | _profile_jobs(context))


def _expired_profiles(context: StageContext) -> ExpiredProfiles:
    sites = {site.name: site for site in context.run.sites}
    return ExpiredProfiles(
        at=context.now,
        sites={
            name: ExpiredProfile(why=state.why, trial=round_plan.trial_of(context.run, sites[name]), was_tried=state.was_tried)
            for name, state in profiling_states(context).items()
            if isinstance(state, Dropped) and state.is_expired
        },
    )


def profile(context: StageContext) -> Step | None:
    """Measure every site before the next plan is made."""
    if context.is_planned:
        return None
    return _work_left(context, profiling_states(context), Reason.PROFILING, lambda site, pending: StartProfile(site, pending.attempt))


def plan(context: StageContext) -> Step | None:
    """Plan every site and select the round's sites; fail if too few can take part, or have too few labels in common."""
    if context.is_planned:
        return None
    if context.observed.out_of_reach is not None:
        return fail_evaluated(context, context.observed.out_of_reach.reason, context.observed.out_of_reach.message)
    round_, profiles = context.observed.round, profiling_states(context)
    if len(context.run.sites) > INLINE_SITES:
        return _plan_in_worker(context, profiles)
    without = round_plan.Unprofiled(dropped_of(profiles), tried_sites(profiles))
    made = round_plan.round_plan(context.run, context.observed, without, round_, context.now)
    if isinstance(made, OutOfReach):
        return fail_evaluated(context, made.reason, made.message)
    return Step(Reason.ROUND_PLANNED, f"round {round_} is planned", (CommitPlan(made),), work=profiles)


def _plan_in_worker(context: StageContext, profiles: WorkStates) -> Step:
    """Have a worker process plan the round; the plan in the store ends this stage."""
    round_ = context.observed.round
    message = f"round {round_}, {len(profiles)} sites"
    match state_of(context, Work(TaskKind.PLAN, round=round_), {}):
        case Pending(attempt):
            attempts = {site: done.attempt for site, done in done_of(profiles).items()}
            start = StartPlanning(round_, attempt, attempts, dropped_of(profiles), tried_sites(profiles), context.now)
            return Step(Reason.PLANNING, message, (start,), _profile_jobs(context), work=profiles)
        case Active(_, job, waits_for):
            message = f"{message}; waits for {waits_for}" if waits_for else message
            return Step(Reason.PLANNING, message, wanted=_profile_jobs(context) | {job}, work=profiles)
        case Dropped(why):
            return fail_evaluated(context, Reason.PLANNING_FAILED, why)
    raise AssertionError  # a round whose plan is in the store is planned already


def _profile_jobs(context: StageContext) -> frozenset[str]:
    """The profiles that missed their deadline: until the plan, or a record of them, says so, only these jobs do."""
    recorded = round_plan.expired_before(context.run, context.observed)
    profiles = {name: status.job.site for name, status in context.observed.jobs.items() if status.job.kind is TaskKind.PROFILE}
    return frozenset(name for name, site in profiles.items() if site not in recorded)


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
    commit = CommitEvaluation(_evaluation(context, states).model_copy(update={"late": late_sites(training)}))
    return Step(Reason.TRAINING, message, (commit,), active_jobs(training), work=training)


def train(context: StageContext) -> Step | None:
    """Have the selected sites train until each is done or dropped; fail as soon as the quorum is out of reach.

    It does not fail before the last round is evaluated, which may end the run with a result.
    """
    states = training_states(context)
    dropped = dropped_of(states)
    is_evaluated = context.observed.last_round in context.observed.evaluations
    if is_evaluated and len(states) - len(dropped) < context.plan.needed:
        return _fail_without_updates(context, states)
    evaluation = {} if is_evaluated else evaluation_states(context, states)
    step = _work_left(context, states, Reason.TRAINING, lambda site, pending: _training(context, site, pending, evaluation))
    if step is None or is_evaluated:
        return step
    progress = f"{len(done_of(evaluation))} of {len(evaluation)} have evaluated {_subject(context.observed.last_round)}"
    return replace(step, message=f"{step.message}; {progress}")


def aggregate(context: StageContext) -> Step:
    """Aggregate the updates that were received; the job's commit ends this stage, and the round."""
    round_ = context.observed.round
    match state_of(context, Work(TaskKind.AGGREGATE, round=round_), {}):
        case Pending(attempt):
            start = _aggregation(context, attempt)
            return Step(Reason.AGGREGATING, f"{len(start.updates)} updates", (start,))
        case Active(attempt, job, waits_for) as active:
            again = (_aggregation(context, attempt),) if is_to_renew(context, active) else ()
            return Step(Reason.AGGREGATING, waits_for or f"round {round_}", again, frozenset({job}))
        case Dropped(why):
            return fail(Reason.AGGREGATION_FAILED, why)
    raise AssertionError  # an aggregation is done when it is committed, and then another round is the current one


def _aggregation(context: StageContext, attempt: int) -> StartAggregation:
    states, received = training_states(context), context.observed.updates
    updates = tuple(
        UpdateRef(site=site, attempt=done.attempt, sha256=hash_of(received[site][done.attempt])) for site, done in done_of(states).items()
    )
    refused = _refused(context, states)
    absent = {site: why for site, why in dropped_of(states).items() if site not in refused}
    late = {*late_sites(states), *_late_before(context)}
    return StartAggregation(
        context.observed.round,
        attempt,
        updates,
        absent=absent,
        refused=refused,
        out_of_memory=_out_of_memory(context, states),
        late=tuple(site for site in absent if site in late),
    )


def _refused(context: StageContext, states: WorkStates) -> dict[str, Verdict]:
    """The dropped sites whose update was refused at first sight, with the reason."""
    refused, dropped = context.observed.refused_updates, dropped_of(states)
    return {site: verdict_of(one) for site, one in refused.items() if site in dropped}


def _out_of_memory(context: StageContext, states: WorkStates) -> dict[str, int]:
    """The dropped sites of which an attempt ran out of memory, with the samples of the smallest pass that did."""
    attempts = {site: state.out_of_memory for site, state in states.items() if isinstance(state, Dropped)}
    plans, updates = context.plan.plans, context.observed.updates
    return {
        site: smallest_pass(plans[site].micro_batch, count, updates.get(site, {}).values()) for site, count in attempts.items() if count
    }


def _late_before(context: StageContext) -> tuple[str, ...]:
    """The sites that were late when the last round's evaluation was committed."""
    evaluation = context.observed.evaluations.get(context.observed.last_round)
    return evaluation.late if evaluation else ()


def evaluate_last(context: StageContext) -> Step:
    """Evaluate the last round's global adapter, which no further round does, and commit the federated evaluation."""
    round_ = context.observed.last_round
    states = states_of(context, TaskKind.EVALUATE, context.plan.evaluators, context.observed.site_evaluations, round_=round_)
    step = _work_left(context, states, Reason.EVALUATING, lambda site, pending: StartEvaluation(site, round_, pending.attempt))
    return step or Step(Reason.EVALUATING, f"round {round_} is evaluated", (CommitEvaluation(_evaluation(context, states)),), work=states)


def _training(context: StageContext, site: str, pending: Pending, evaluation: WorkStates) -> StartTraining:
    micro_batch = retry_micro_batch(context.plan.plans[site].micro_batch, pending.out_of_memory)
    round_, evaluates = context.observed.round, isinstance(evaluation.get(site), Pending | Active)
    return StartTraining(site, round_, pending.attempt, micro_batch, evaluates=evaluates)


def _work_left(context: StageContext, states: WorkStates, reason: Reason, start: Callable[[str, Pending], Action]) -> Step | None:
    """Start pending tasks at sites with a free job slot, and wait for active ones; None when every site is done or dropped."""
    pending = {site: one for site, one in states.items() if isinstance(one, Pending)}
    active = {site: one for site, one in states.items() if isinstance(one, Active)}
    if not pending and not active:
        return None
    waits = {site: context.observed.busy[site] for site in pending if site in context.observed.busy}
    started = pending | {site: Pending(one.attempt, one.out_of_memory) for site, one in active.items() if is_to_renew(context, one)}
    actions = tuple(start(site, one) for site, one in started.items() if site not in waits)
    waits |= {site: one.waits_for for site, one in active.items() if one.waits_for}
    waiting = "".join(f"; {site} waits for {what}" for site, what in sorted(waits.items()))
    stragglers = _stragglers((pending.keys() | active.keys()) - waits.keys(), len(done_of(states)))
    return Step(reason, f"{_progress(states)}{stragglers}{waiting}", actions, active_jobs(states) | expired_jobs(states), work=states)


def _progress(states: WorkStates) -> str:
    return f"{len(done_of(states))} of {len(states)} sites done"


def _stragglers(at_work: Collection[str], done: int) -> str:
    """Names the sites that are still at work, once as many are done and few are left."""
    return f"; {', '.join(sorted(at_work))} at work" if 0 < len(at_work) <= min(done, _NAMED) else ""


def _subject(round_: int) -> str:
    return f"round {round_}" if round_ else "the base"


def _evaluation(context: StageContext, states: WorkStates) -> RoundEvaluation:
    results = {site: context.observed.site_evaluations[site][done.attempt] for site, done in done_of(states).items()}
    spec = context.run.spec
    bounds = SiteBounds(spec.evaluation.max_samples, spec.aggregation.max_site_weight)
    evaluation = aggregate_metrics(context.observed.last_round, results, dropped_of(states), bounds=bounds, now=context.now)
    return evaluation.model_copy(update={"needed": context.plan.needed})


def _fail_without_updates(context: StageContext, states: WorkStates) -> Step:
    """The end of a run whose round cannot have the updates that it needs any more."""
    plan, dropped = context.plan, dropped_of(states)
    lost = "; ".join(f"{site}: {why}" for site, why in sorted((dict(plan.excluded) | dropped).items()))
    message = f"round {plan.round} needs {plan.needed} updates of {len(plan.selected)} sites; lost: {lost}"
    count = len(states) - len(dropped)
    spec = with_planned_rule(context.run.spec, plan)
    return fail(*out_of_reach(spec, matched=len(context.run.sites), count=count, message=message))


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
