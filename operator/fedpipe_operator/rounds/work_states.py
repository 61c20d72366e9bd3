"""The state of each task of a stage, by site: of profiles, trainings, and the evaluations that come with these. Pure."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

from fedpipe_operator import names
from fedpipe_operator.admission import AdmittedEvaluation, Refused
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.rounds import consent, round_plan
from fedpipe_operator.rounds.attempts import Active, Done, Dropped, Pending, Work, WorkState, work_state
from fedpipe_operator.rounds.deadlines import needs_new_urls, stage_of
from fedpipe_operator.rounds.observed import Observed, Run
from fedpipe_operator.rounds.policies import is_out_of_retries
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.contract import FailureReason, Outcome, Result

WorkStates = Mapping[str, WorkState]

_NO_SMALLER_PASS: Final = (
    f"{FailureReason.OUT_OF_MEMORY}: the kernel ended the trainer at its memory limit with a micro-batch of one sample, the smallest: give"
    " the site more memory in spec.capacity.memory, or the run a smaller base model or a lower task.maxLength"
)
_GONE: Final = "SiteGone: its EdgeSite was deleted, is invalid, or no longer has the labels of sites.selector"


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

    @cached_property
    def denied(self) -> Mapping[str, str]:
        """By site whose policy does not allow the run: the reason."""
        return consent.denials(self.run)

    @cached_property
    def left_out(self) -> Mapping[str, str]:
        """By site that its policy leaves out of the next plan: the reason."""
        return consent.left_out(self.run)

    @property
    def is_trained(self) -> bool:
        """Whether all rounds are committed: what is left is the evaluation of the last adapter, and the export."""
        return self.observed.last_round >= self.run.spec.rounds.count

    @property
    def is_planned(self) -> bool:
        """Whether the current round has a plan; after the last round there is nothing more to plan."""
        return self.observed.round in self.observed.plans or self.is_trained


def training_states(context: StageContext) -> WorkStates:
    """The state of each of the round's sites; one whose update the gate refused is dropped from the round."""
    states = states_of(context, TaskKind.TRAIN, context.plan.selected, context.observed.updates, round_=context.observed.round)
    return {site: _after_verdict(context, site, _after_last_retry(context, site, state)) for site, state in states.items()}


def evaluation_states(context: StageContext, training: WorkStates) -> WorkStates:
    """The part of each of the round's evaluators in the evaluation that comes with the training, whose states are `training`.

    Any attempt's evaluation counts, also that of a site which is dropped from the training afterwards. A failed one is tried again
    only with the training.
    """
    results = context.observed.site_evaluations
    return {
        site: _evaluation_state(training[site], results.get(site, {}), _refused_evaluation(context, site))
        for site in context.plan.evaluators
        if site in training
    }


def _refused_evaluation(context: StageContext, site: str) -> Refused | None:
    """Why an evaluation of the last round's adapter by this site was refused, if one was."""
    folder = names.evaluation_folder(context.observed.last_round, site)
    return next((refused for key, refused in sorted(context.observed.refused.items()) if key.startswith(f"{folder}/")), None)


def _evaluation_state(training: WorkState, results: Mapping[int, AdmittedEvaluation], refused: Refused | None) -> WorkState:
    completed = next((attempt for attempt, result in sorted(results.items()) if result.outcome is Outcome.COMPLETED), None)
    if completed is not None:
        return Done(completed)
    if refused is not None:
        return Dropped(str(refused))
    if isinstance(training, Pending) or (isinstance(training, Active) and not _has_failed(results.get(training.attempt))):
        return training
    failure = results[max(results)].failure if results else None
    if failure is not None:
        return Dropped(f"{failure.reason}: {failure.message}")
    return training if isinstance(training, Dropped) else Dropped("NoResult: its trainer sent an update but no evaluation")


def _has_failed(result: AdmittedEvaluation | None) -> bool:
    """Whether the evaluation of an active training failed.

    While it is active, an interrupted one may be made again: by the pod that replaces the training's, or by the training, if the result is
    of an evaluation job that ended because a further round could be planned after all. One that gave up for its deadline says the same,
    and counts once the training has ended.
    """
    return result is not None and result.failure is not None and result.failure.reason is not FailureReason.TERMINATED


def _after_last_retry(context: StageContext, site: str, state: WorkState) -> WorkState:
    if isinstance(state, Pending) and is_out_of_retries(context.plan.plans[site].micro_batch, state.out_of_memory):
        return Dropped(_NO_SMALLER_PASS, state.out_of_memory)
    return state


def _after_verdict(context: StageContext, site: str, state: WorkState) -> WorkState:
    if not isinstance(state, Done):
        return state
    verdict = context.observed.verdicts.get(site, {}).get(state.attempt)
    refused = verdict is not None and not verdict.accepted
    return Dropped(f"{verdict.reason}: {verdict.message}") if verdict is not None and refused else state


def profiling_states(context: StageContext) -> WorkStates:
    """Of every site. One that has changed since it was profiled is profiled again; one whose profile was given up is not."""
    found, run = context.observed.profiles, context.run
    ended = {site: Dropped(why, was_tried=True) for site, why in round_plan.given_up(run, context.observed).items()}
    for name, one in round_plan.expired_before(run, context.observed).items():
        ended[name] = Dropped(one.why, is_expired=True, was_tried=one.was_tried)
    outdated = {
        site.name: {attempt for attempt, profile in found.get(site.name, {}).items() if round_plan.is_outdated(profile, site)}
        for site in run.sites
    }
    states = states_of(context, TaskKind.PROFILE, outdated, found, round_=0, outdated=outdated)
    states = {site: state if isinstance(state, Done) else ended.get(site, state) for site, state in states.items()}
    return {site: Dropped(context.left_out[site]) if site in context.left_out else state for site, state in states.items()}


def states_of(  # noqa: PLR0913 -- what the states depend on
    context: StageContext,
    kind: TaskKind,
    sites: Iterable[str],
    results: Mapping[str, Mapping[int, Result]],
    *,
    round_: int,
    outdated: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> WorkStates:
    """By site. A site that is gone is dropped, unless it is done; one whose policy denies the run, in any case: consent can be withdrawn.

    `outdated`: attempts that do not count, by site.
    """
    stage = stage_of(context.run, context.observed, kind, round_)
    states = {
        site: work_state(
            Work(kind, site, round_),
            context.run,
            context.observed,
            results=results.get(site, {}),
            expired=stage.expired(site, context.now) if stage else None,
            outdated=outdated.get(site, ()),
        )
        for site in sites
    }
    known = {site.name for site in context.run.sites}
    states = {site: state if site in known or isinstance(state, Done) else Dropped(_GONE) for site, state in states.items()}
    return {site: Dropped(context.denied[site]) if site in context.denied else state for site, state in states.items()}


def state_of(context: StageContext, work: Work, results: Mapping[int, Result], outdated: Collection[int] = ()) -> WorkState:
    """Of work that concerns the whole run. `outdated`: attempts that do not count."""
    stage = stage_of(context.run, context.observed, work.kind, work.round)
    return work_state(
        work,
        context.run,
        context.observed,
        results=results,
        expired=stage.expired(work.site, context.now) if stage else None,
        outdated=outdated,
    )


def is_to_renew(context: StageContext, active: Active) -> bool:
    """Whether this attempt is to be started again for its URLs or key pair: its job keeps its place in the queue."""
    return needs_new_urls(context.observed.jobs[active.job], context.now)


def active_jobs(states: WorkStates) -> frozenset[str]:
    """The jobs of those that are waiting or running, and of those that a queue held for too long: only these jobs say so."""
    return frozenset(one.job for one in states.values() if isinstance(one, Active) or (isinstance(one, Dropped) and one.is_held))


def expired_jobs(states: WorkStates) -> frozenset[str]:
    """The jobs of those whose time is over: while the stage goes on for others, they stay, since only they say how it ended."""
    return frozenset(one.job for one in states.values() if isinstance(one, Dropped) and one.job)


def done_of(states: WorkStates) -> dict[str, Done]:
    """Those with a result, by site."""
    return {site: done for site, done in states.items() if isinstance(done, Done)}


def tried_sites(states: WorkStates) -> tuple[str, ...]:
    """The sites that had the whole time of the stage, and were not done at the deadline."""
    return tuple(site for site, state in states.items() if isinstance(state, Dropped) and state.was_tried)


def late_sites(states: WorkStates) -> tuple[str, ...]:
    """The sites that were at work at the deadline."""
    return tuple(site for site, state in states.items() if isinstance(state, Dropped) and state.is_late)


def dropped_of(states: WorkStates) -> dict[str, str]:
    """By site without a result: the reason."""
    return {site: dropped.why for site, dropped in states.items() if isinstance(dropped, Dropped)}
