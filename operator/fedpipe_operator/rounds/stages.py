"""The stages of a round. Each looks, and says the next step, or None when what it stands for is done."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from fedpipe_operator.api import FineTuneSpec, Reason, primary_metric
from fedpipe_operator.rounds import evaluation, round_plan
from fedpipe_operator.rounds.actions import (
    Action,
    CommitEvaluation,
    CommitPlan,
    StartAggregation,
    StartEvaluation,
    StartExport,
    StartProfile,
    StartTraining,
)
from fedpipe_operator.rounds.attempts import Active, Done, Dropped, Pending, Work, WorkState, stage_expired, work_state
from fedpipe_operator.rounds.observed import Observed, Run
from fedpipe_operator.rounds.out_of_memory import micro_batch
from fedpipe_operator.rounds.patience import best_round, exhausted
from fedpipe_operator.rounds.records import RoundEvaluation, RoundPlan, UpdateRef
from fedpipe_operator.rounds.target import reached
from fedpipe_trainer.contract import Manifest


class End(Enum):
    """How a run can end."""

    SUCCEEDED = auto()
    FAILED = auto()


@dataclass(frozen=True)
class StageContext:
    """What every stage is given."""

    run: Run
    observed: Observed
    now: float

    @property
    def plan(self) -> RoundPlan:
        """The plan of the round under way (round 0, the base's evaluation, goes by round 1's)."""
        return self.observed.plans[max(self.observed.round, 1)]


@dataclass(frozen=True)
class Step:
    """The next step of a run: what to do, which jobs are still wanted, and how to call it."""

    reason: Reason
    message: str
    actions: tuple[Action, ...] = ()
    wanted: frozenset[str] = frozenset()
    end: End | None = None


WorkStates = Mapping[str, WorkState]

_GONE: Final = "SiteGone: its EdgeSite was deleted, cannot be read, or no longer carries the labels of sites.selector"


def fail(reason: Reason, message: str) -> Step:
    """The end of a run that cannot go on."""
    return Step(reason, message, end=End.FAILED)


def profile(context: StageContext) -> Step | None:
    """Measure every site before the next plan is made."""
    if max(context.observed.round, 1) in context.observed.plans:
        return None
    states = _work_states(context, "profile", (site.name for site in context.run.sites), context.observed.profiles, round_=0)
    return _work_left(context, states, Reason.PROFILING, lambda site, pending: StartProfile(site, pending.attempt))


def plan(context: StageContext) -> Step | None:
    """Give every site its plan, and the round its sites; fail where too few can take part."""
    round_ = max(context.observed.round, 1)
    if round_ in context.observed.plans:
        return None
    failed = _dropped(_work_states(context, "profile", (site.name for site in context.run.sites), context.observed.profiles, round_=0))
    made = round_plan.round_plan(context.run, context.observed, failed, round_, context.now)
    if isinstance(made, round_plan.OutOfReach):
        return fail(Reason.QUORUM_OUT_OF_REACH, made.message)
    return Step(Reason.ROUND_PLANNED, f"round {round_} is planned", (CommitPlan(made),))


def train(context: StageContext) -> Step | None:
    """Have the round's sites train, until all are settled; fail as soon as the quorum is out of reach."""
    if context.observed.round in context.observed.commits:
        return None
    states = training_states(context)
    dropped = _dropped(states)
    if len(states) - len(dropped) < context.plan.needed:
        return fail(Reason.QUORUM_OUT_OF_REACH, _too_few(context.plan, dropped))
    return _work_left(context, states, Reason.TRAINING, lambda site, pending: _training(context, site, pending))


def aggregate(context: StageContext) -> Step | None:
    """Aggregate the updates that came; the job's commit ends this stage."""
    round_ = context.observed.round
    if round_ in context.observed.commits:
        return None
    match work_state(
        Work("aggregate", round=round_), context.run, context.observed, results={}, expired=_expired(context, "aggregate", round_)
    ):
        case Pending(attempt):
            states = training_states(context)
            updates = tuple(UpdateRef(site=site, attempt=done.attempt) for site, done in _done(states).items())
            return Step(Reason.AGGREGATING, f"{len(updates)} updates", (StartAggregation(round_, attempt, updates, _dropped(states)),))
        case Active(_, job, waits_for):
            return Step(Reason.AGGREGATING, waits_for or f"round {round_}", wanted=frozenset({job}))
        case Dropped(why):
            return fail(Reason.AGGREGATION_FAILED, why)
    raise AssertionError  # an aggregation is done when it is committed, which the first lines saw


def evaluate(context: StageContext) -> Step | None:
    """Measure the round's global adapter (round 0: the base) at the plan's evaluators, then write what came of it."""
    round_ = context.observed.round
    states = _work_states(context, "evaluate", context.plan.evaluators, context.observed.site_evaluations, round_=round_)
    step = _work_left(context, states, Reason.EVALUATING, lambda site, pending: StartEvaluation(site, round_, pending.attempt))
    if step is not None:
        return step
    results = {site: context.observed.site_evaluations[site][done.attempt] for site, done in _done(states).items()}
    union = evaluation.union(round_, results, _dropped(states), context.now)
    return Step(Reason.EVALUATING, f"round {round_} is evaluated", (CommitEvaluation(union),))


def export(context: StageContext) -> Step | None:
    """Export the best round's global adapter, if the spec asks for anything."""
    if not (context.run.spec.export.adapter or context.run.spec.export.merged):
        return None
    round_ = exported_round(context.run.spec, context.observed.evaluations)
    match work_state(
        Work("export"), context.run, context.observed, results=context.observed.exports, expired=_expired(context, "export", 0)
    ):
        case Pending(attempt):
            return Step(Reason.EXPORTING, f"round {round_}", (StartExport(round_, attempt),))
        case Active(_, job, waits_for):
            return Step(Reason.EXPORTING, waits_for or f"round {round_}", wanted=frozenset({job}))
        case Dropped(why):
            return fail(Reason.EXPORT_FAILED, why)
        case Done():
            return None


def exported_round(spec: FineTuneSpec, evaluations: Mapping[int, RoundEvaluation]) -> int:
    """The round whose global adapter is the run's result: the best by the run's metric; 0 before round 1."""
    return best_round(evaluations, primary_metric(spec))


def training_states(context: StageContext) -> WorkStates:
    """Where each of the round's sites stands; an update that the gate refused costs its site the round."""
    states = _work_states(context, "train", context.plan.selected, context.observed.updates, round_=context.observed.round)
    return {site: _judged(context, site, state) for site, state in states.items()}


def _judged(context: StageContext, site: str, state: WorkState) -> WorkState:
    if not isinstance(state, Done):
        return state
    verdict = context.observed.verdicts.get(site, {}).get(state.attempt)
    refused = verdict is not None and not verdict.accepted
    return Dropped(f"{verdict.reason}: {verdict.message}") if verdict is not None and refused else state


def _work_states(
    context: StageContext, kind: str, sites: Iterable[str], results: Mapping[str, Mapping[int, Manifest]], *, round_: int
) -> WorkStates:
    expired = _expired(context, kind, round_)
    states = {
        site: work_state(Work(kind, site, round_), context.run, context.observed, results=results.get(site, {}), expired=expired)
        for site in sites
    }
    known = {site.name for site in context.run.sites}
    return {site: one if site in known or isinstance(one, Done) else Dropped(_GONE) for site, one in states.items()}


def _expired(context: StageContext, kind: str, round_: int) -> bool:
    return stage_expired(context.run, context.observed, kind, round_, context.now)


def _training(context: StageContext, site: str, pending: Pending) -> StartTraining:
    batch_size = context.plan.plans[site].batch_size
    return StartTraining(site, context.observed.round, pending.attempt, micro_batch(batch_size, pending.out_of_memory))


def _work_left(context: StageContext, states: WorkStates, reason: Reason, start: Callable[[str, Pending], Action]) -> Step | None:
    """Start what is to do where the site has room, and wait for what is at work; None when every site is done or out."""
    pending = {site: one for site, one in states.items() if isinstance(one, Pending)}
    active = {site: one for site, one in states.items() if isinstance(one, Active)}
    if not pending and not active:
        return None
    waits = {site: context.observed.busy[site] for site in pending if site in context.observed.busy}
    actions = tuple(start(site, one) for site, one in pending.items() if site not in waits)
    waits |= {site: one.waits_for for site, one in active.items() if one.waits_for}
    told = "".join(f"; {site} waits for {what}" for site, what in sorted(waits.items()))
    message = f"{len(_done(states))} of {len(states)} sites done{told}"
    return Step(reason, message, actions, frozenset(one.job for one in active.values()))


def _done(states: WorkStates) -> dict[str, Done]:
    return {site: done for site, done in states.items() if isinstance(done, Done)}


def _dropped(states: WorkStates) -> dict[str, str]:
    return {site: dropped.why for site, dropped in states.items() if isinstance(dropped, Dropped)}


def _too_few(round_plan: RoundPlan, dropped: Mapping[str, str]) -> str:
    lost = "; ".join(f"{site}: {why}" for site, why in sorted((dict(round_plan.excluded) | dict(dropped)).items()))
    return f"round {round_plan.round} needs {round_plan.needed} updates of {len(round_plan.selected)} sites; lost: {lost}"


def ended(context: StageContext) -> Reason | None:
    """Why no further round is wanted; None while one is."""
    last = context.observed.evaluations.get(context.observed.round - 1)
    rounds = context.run.spec.rounds
    if last is None or last.round == 0:
        return None
    if reached(rounds.target, last):
        return Reason.TARGET_REACHED
    if exhausted(rounds.patience, context.observed.evaluations, primary_metric(context.run.spec)):
        return Reason.PATIENCE_EXHAUSTED
    return Reason.ROUNDS_COMPLETED if last.round >= rounds.count else None
