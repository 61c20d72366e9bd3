"""The stages of a round. Each looks, and says the next step, or None when what it stands for is done."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from fedpipe_operator.api import FineTuneSpec, Reason, primary_metric
from fedpipe_operator.records import RoundEvaluation, RoundPlan, UpdateRef
from fedpipe_operator.rounds import evaluation, planned
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
from fedpipe_operator.rounds.attempts import Active, Done, Out, Standing, Todo, Work, stage_expired, standing
from fedpipe_operator.rounds.memory import micro_batch
from fedpipe_operator.rounds.patience import best_round, exhausted
from fedpipe_operator.rounds.seen import Run, Seen
from fedpipe_operator.rounds.target import reached
from fedpipe_trainer.contract import Manifest


class End(Enum):
    """How a run can end."""

    SUCCEEDED = auto()
    FAILED = auto()


@dataclass(frozen=True)
class Look:
    """What every stage is given."""

    run: Run
    seen: Seen
    now: float

    @property
    def plan(self) -> RoundPlan:
        """The plan of the round under way (round 0, the base's evaluation, goes by round 1's)."""
        return self.seen.plans[max(self.seen.round, 1)]


@dataclass(frozen=True)
class Step:
    """The next step of a run: what to do, which jobs are still wanted, and how to call it."""

    reason: Reason
    message: str
    actions: tuple[Action, ...] = ()
    wanted: frozenset[str] = frozenset()
    end: End | None = None


Standings = Mapping[str, Standing]

_GONE: Final = "SiteGone: its EdgeSite was deleted, cannot be read, or no longer carries the labels of sites.selector"


def fail(reason: Reason, message: str) -> Step:
    """The end of a run that cannot go on."""
    return Step(reason, message, end=End.FAILED)


def profile(look: Look) -> Step | None:
    """Measure every site before the next plan is made."""
    if max(look.seen.round, 1) in look.seen.plans:
        return None
    standings = _standings(look, "profile", (site.name for site in look.run.sites), look.seen.profiles, round_=0)
    return _work_left(look, standings, Reason.PROFILING, lambda site, todo: StartProfile(site, todo.attempt))


def plan(look: Look) -> Step | None:
    """Give every site its plan, and the round its sites; fail where too few can take part."""
    round_ = max(look.seen.round, 1)
    if round_ in look.seen.plans:
        return None
    failed = _out(_standings(look, "profile", (site.name for site in look.run.sites), look.seen.profiles, round_=0))
    made = planned.round_plan(look.run, look.seen, failed, round_, look.now)
    if isinstance(made, planned.OutOfReach):
        return fail(Reason.QUORUM_OUT_OF_REACH, made.message)
    return Step(Reason.ROUND_PLANNED, f"round {round_} is planned", (CommitPlan(made),))


def train(look: Look) -> Step | None:
    """Have the round's sites train, until all are settled; fail as soon as the quorum is out of reach."""
    if look.seen.round in look.seen.commits:
        return None
    standings = training_standings(look)
    out = _out(standings)
    if len(standings) - len(out) < look.plan.needed:
        return fail(Reason.QUORUM_OUT_OF_REACH, _too_few(look.plan, out))
    return _work_left(look, standings, Reason.TRAINING, lambda site, todo: _training(look, site, todo))


def aggregate(look: Look) -> Step | None:
    """Aggregate the updates that came; the job's commit ends this stage."""
    round_ = look.seen.round
    if round_ in look.seen.commits:
        return None
    match standing(Work("aggregate", round=round_), look.run, look.seen, manifests={}, expired=_expired(look, "aggregate", round_)):
        case Todo(attempt):
            standings = training_standings(look)
            updates = tuple(UpdateRef(site=site, attempt=done.attempt) for site, done in _done(standings).items())
            return Step(Reason.AGGREGATING, f"{len(updates)} updates", (StartAggregation(round_, attempt, updates, _out(standings)),))
        case Active(_, job, waits_for):
            return Step(Reason.AGGREGATING, waits_for or f"round {round_}", wanted=frozenset({job}))
        case Out(why):
            return fail(Reason.AGGREGATION_FAILED, why)
    raise AssertionError  # an aggregation is done when it is committed, which the first lines saw


def evaluate(look: Look) -> Step | None:
    """Measure the round's global adapter (round 0: the base) at the plan's evaluators, then write what came of it."""
    round_ = look.seen.round
    standings = _standings(look, "evaluate", look.plan.evaluators, look.seen.site_evaluations, round_=round_)
    step = _work_left(look, standings, Reason.EVALUATING, lambda site, todo: StartEvaluation(site, round_, todo.attempt))
    if step is not None:
        return step
    results = {site: look.seen.site_evaluations[site][done.attempt] for site, done in _done(standings).items()}
    union = evaluation.union(round_, results, _out(standings), look.now)
    return Step(Reason.EVALUATING, f"round {round_} is evaluated", (CommitEvaluation(union),))


def export(look: Look) -> Step | None:
    """Export the best round's global adapter, if the spec asks for anything."""
    if not (look.run.spec.export.adapter or look.run.spec.export.merged):
        return None
    round_ = exported_round(look.run.spec, look.seen.evaluations)
    match standing(Work("export"), look.run, look.seen, manifests=look.seen.exports, expired=_expired(look, "export", 0)):
        case Todo(attempt):
            return Step(Reason.EXPORTING, f"round {round_}", (StartExport(round_, attempt),))
        case Active(_, job, waits_for):
            return Step(Reason.EXPORTING, waits_for or f"round {round_}", wanted=frozenset({job}))
        case Out(why):
            return fail(Reason.EXPORT_FAILED, why)
        case Done():
            return None


def exported_round(spec: FineTuneSpec, evaluations: Mapping[int, RoundEvaluation]) -> int:
    """The round whose global adapter is the run's result: the best by the run's metric; 0 before round 1."""
    return best_round(evaluations, primary_metric(spec))


def training_standings(look: Look) -> Standings:
    """Where each of the round's sites stands; an update that the gate refused costs its site the round."""
    standings = _standings(look, "train", look.plan.selected, look.seen.updates, round_=look.seen.round)
    return {site: _judged(look, site, site_standing) for site, site_standing in standings.items()}


def _judged(look: Look, site: str, site_standing: Standing) -> Standing:
    if not isinstance(site_standing, Done):
        return site_standing
    verdict = look.seen.verdicts.get(site, {}).get(site_standing.attempt)
    refused = verdict is not None and not verdict.accepted
    return Out(f"{verdict.reason}: {verdict.message}") if verdict is not None and refused else site_standing


def _standings(look: Look, kind: str, sites: Iterable[str], manifests: Mapping[str, Mapping[int, Manifest]], *, round_: int) -> Standings:
    expired = _expired(look, kind, round_)
    standings = {
        site: standing(Work(kind, site, round_), look.run, look.seen, manifests=manifests.get(site, {}), expired=expired) for site in sites
    }
    known = {site.name for site in look.run.sites}
    return {site: one if site in known or isinstance(one, Done) else Out(_GONE) for site, one in standings.items()}


def _expired(look: Look, kind: str, round_: int) -> bool:
    return stage_expired(look.run, look.seen, kind, round_, look.now)


def _training(look: Look, site: str, todo: Todo) -> StartTraining:
    batch_size = look.plan.plans[site].batch_size
    return StartTraining(site, look.seen.round, todo.attempt, micro_batch(batch_size, todo.out_of_memory))


def _work_left(look: Look, standings: Standings, reason: Reason, start: Callable[[str, Todo], Action]) -> Step | None:
    """Start what is to do where the site has room, and wait for what is at work; None when every site is done or out."""
    todo = {site: one for site, one in standings.items() if isinstance(one, Todo)}
    active = {site: one for site, one in standings.items() if isinstance(one, Active)}
    if not todo and not active:
        return None
    waits = {site: look.seen.busy[site] for site in todo if site in look.seen.busy}
    actions = tuple(start(site, one) for site, one in todo.items() if site not in waits)
    waits |= {site: one.waits_for for site, one in active.items() if one.waits_for}
    told = "".join(f"; {site} waits for {what}" for site, what in sorted(waits.items()))
    message = f"{len(_done(standings))} of {len(standings)} sites done{told}"
    return Step(reason, message, actions, frozenset(one.job for one in active.values()))


def _done(standings: Standings) -> dict[str, Done]:
    return {site: done for site, done in standings.items() if isinstance(done, Done)}


def _out(standings: Standings) -> dict[str, str]:
    return {site: out.why for site, out in standings.items() if isinstance(out, Out)}


def _too_few(round_plan: RoundPlan, out: Mapping[str, str]) -> str:
    lost = "; ".join(f"{site}: {why}" for site, why in sorted((dict(round_plan.excluded) | dict(out)).items()))
    return f"round {round_plan.round} needs {round_plan.needed} updates of {len(round_plan.selected)} sites; lost: {lost}"


def ended(look: Look) -> Reason | None:
    """Why no further round is wanted; None while one is."""
    last = look.seen.evaluations.get(look.seen.round - 1)
    rounds = look.run.spec.rounds
    if last is None or last.round == 0:
        return None
    if reached(rounds.target, last):
        return Reason.TARGET_REACHED
    if exhausted(rounds.patience, look.seen.evaluations, primary_metric(look.run.spec)):
        return Reason.PATIENCE_EXHAUSTED
    return Reason.ROUNDS_COMPLETED if last.round >= rounds.count else None
