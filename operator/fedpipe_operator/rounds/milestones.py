"""What a run has reached, as lines of the log: profiled, planned, training, updates, aggregated, evaluated, exported, complete. Pure.

Each milestone has a key, by which `cluster.run_log` writes it once however often it is observed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fedpipe_operator.api import ConditionStatus, ConditionType, primary_metric
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.formatting import counted, metric_text
from fedpipe_operator.rounds.actions import Decision, StartTraining
from fedpipe_operator.rounds.observed import Observed, Run
from fedpipe_operator.rounds.policies import metric_value
from fedpipe_trainer.contract import Outcome, Result


@dataclass(frozen=True)
class Milestone:
    """Something that a run has reached."""

    key: str
    """The same whenever the same is observed."""
    message: str
    round: int | None = None
    site: str | None = None
    attempt: int | None = None
    is_warning: bool = False
    is_intermittent: bool = False
    """Whether it is not observed all the time: profiles are read for the next plan only."""


def milestones(run: Run, observed: Observed, decision: Decision) -> tuple[Milestone, ...]:
    """All that can be told of what was observed, and of what was decided then."""
    return (
        *_profiles(observed),
        *_plans(observed),
        *_dry_exports(observed),
        *_first_trainings(observed, decision),
        *_results(observed.updates, "update", observed.round),
        *_retries(observed, decision),
        *_refusals(observed),
        *_rounds(run, observed),
        *_exports(observed),
        *_ends(decision),
    )


def _profiles(observed: Observed) -> Iterator[Milestone]:
    """Those that the newest plan was not made with."""
    known = observed.plan.profiles if observed.plan else {}
    new = {
        site: {attempt: result for attempt, result in attempts.items() if attempt != known.get(site)}
        for site, attempts in observed.profiles.items()
    }
    for one in _results(new, "profile", None):
        yield replace(one, is_intermittent=True)


def _results(results: Mapping[str, Mapping[int, Result]], what: str, round_: int | None) -> Iterator[Milestone]:
    for site, attempts in sorted(results.items()):
        for attempt, result in sorted(attempts.items()):
            yield _result(result, (f"{what} received", f"no {what}"), f"{what} {round_} {site} {attempt}", (round_, site, attempt))


def _result(result: Result, words: tuple[str, str], key: str, at: tuple[int | None, str | None, int]) -> Milestone:
    """The first word or the second; of a failed task the reason alone, as its message is the site's, and is in the status."""
    if result.outcome is Outcome.COMPLETED or result.failure is None:
        return Milestone(key, words[0], *at)
    return Milestone(f"{key} failed", f"{words[1]}: {result.failure.reason}", *at, is_warning=True)


def _plans(observed: Observed) -> Iterator[Milestone]:
    plan = observed.plan
    if plan is None:
        return
    yield Milestone("profiled", f"{counted(len(plan.profiles or plan.plans), 'site')} profiled")
    left_out = f"; {counted(len(plan.excluded), 'site')} left out" if plan.excluded else ""
    message = f"round {plan.round} planned for {counted(len(plan.selected), 'site')}; it needs {counted(plan.needed, 'update')}{left_out}"
    yield Milestone(f"planned {plan.round}", message, plan.round)


def _first_trainings(observed: Observed, decision: Decision) -> Iterator[Milestone]:
    """One line, once all sites have started or a first one is done: some may have waited for a job slot."""
    plan, sites = observed.plan, {site for site, _ in _started(observed, decision)}
    if plan is None or plan.round != observed.round or not sites:
        return
    if len(sites) == len(plan.selected) or any(observed.updates.values()):
        of_all = "" if len(sites) == len(plan.selected) else f" of {len(plan.selected)}"
        message = f"training of round {plan.round} started at {len(sites)}{of_all} site{'' if len(plan.selected) == 1 else 's'}"
        yield Milestone(f"training {plan.round}", message, plan.round)


def _retries(observed: Observed, decision: Decision) -> Iterator[Milestone]:
    for site, attempt in sorted(_started(observed, decision)):
        if attempt > 0:
            message = f"training of round {observed.round} started again"
            yield Milestone(f"training {observed.round} {site} {attempt}", message, observed.round, site, attempt)


def _started(observed: Observed, decision: Decision) -> set[tuple[str, int]]:
    """Site and attempt of each training of the current round."""
    jobs = [status.job for status in observed.jobs.values() if status.job.kind is TaskKind.TRAIN and status.job.round == observed.round]
    actions = [action for action in decision.actions if isinstance(action, StartTraining)]
    return {(job.site, job.attempt) for job in jobs} | {(action.site, action.attempt) for action in actions}


def _refusals(observed: Observed) -> Iterator[Milestone]:
    for key, refused in sorted(observed.refused.items()):
        yield Milestone(f"refused {key}", f"{key} refused: {refused}", is_warning=True)


def _rounds(run: Run, observed: Observed) -> Iterator[Milestone]:
    for round_, commit in sorted(observed.commits.items()):
        message = f"round {round_} aggregated: {counted(len(commit.contributions), 'update')}"
        yield Milestone(f"aggregated {round_}", message, round_)
    metric = primary_metric(run.spec)
    for round_, evaluation in sorted(observed.evaluations.items()):
        value = metric_value(evaluation, metric)
        found = "" if value is None else f": {metric} {metric_text(metric, value)}"
        subject = f"round {round_}" if round_ else "the base"
        yield Milestone(f"evaluated {round_}", f"{subject} evaluated by {counted(len(evaluation.sites), 'site')}{found}", round_ or None)


def _dry_exports(observed: Observed) -> Iterator[Milestone]:
    for attempt, result in sorted(observed.dry_exports.items()):
        yield _result(result, ("export tried", "export not possible"), f"dry export {attempt}", (None, None, attempt))


def _exports(observed: Observed) -> Iterator[Milestone]:
    for attempt, result in sorted(observed.exports.items()):
        yield _result(result, ("exported", "not exported"), f"export {attempt}", (None, None, attempt))


def _ends(decision: Decision) -> Iterator[Milestone]:
    words = {ConditionType.SUSPENDED: "suspended", ConditionType.COMPLETE: "complete", ConditionType.FAILED: "failed"}
    for condition in decision.status.conditions:
        if condition.status is ConditionStatus.TRUE and condition.type in words:
            is_failed = condition.type == ConditionType.FAILED
            word = words[ConditionType(condition.type)]
            yield Milestone(word, f"{word}: {condition.reason}: {condition.message}", is_warning=is_failed)
