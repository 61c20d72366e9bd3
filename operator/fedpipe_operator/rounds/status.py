"""The status of a run: conditions and figures, derived anew by each reconcile from observed state and the next step. Lists are bounded."""

from collections.abc import Collection, Iterable, Sequence

from fedpipe_operator import names
from fedpipe_operator.api import (
    TRACKED,
    Condition,
    ConditionStatus,
    ConditionType,
    FederatedFineTune,
    FineTuneStatus,
    MeasuredStatus,
    MetricStatus,
    Reason,
    RoundStatus,
    StoreStatus,
    UpdatesStatus,
    primary_metric,
)
from fedpipe_operator.formatting import counted
from fedpipe_operator.planning import hyperparameter_status, plan_status
from fedpipe_operator.rounds.attempts import DEADLINE_EXCEEDED, Done, Dropped
from fedpipe_operator.rounds.conditions import Observation, conditions_of
from fedpipe_operator.rounds.observed import CommitSummary, Observed, PlanSummary, Run
from fedpipe_operator.rounds.policies import has_quorum, metric_value
from fedpipe_operator.rounds.progress import progress_of
from fedpipe_operator.rounds.records import STATUS_SITES, RoundPlan
from fedpipe_operator.rounds.revision import revision_of
from fedpipe_operator.rounds.stages import End, Step, end_reason_of
from fedpipe_operator.rounds.work_states import StageContext, WorkStates, training_states
from fedpipe_operator.sites import Efficiency, Measurement

_SENTENCE_MAX = 1024
"""Characters of a site's reason in the status; the store has the whole text."""
_NOTE_MAX = 256
"""Characters of a site's reason where many rounds keep one of each site."""
_DIGITS = 4
"""Decimals of metrics, losses and energies in the status, for people; the store has all of them."""
_NOT_SELECTED = "NotSelected: aggregation.rule left the update out, because it lies further from the others than those it selected"
_LARGEST = 2**53
"""Of an integer of the status. Commits lie in the run's bucket: whoever may write there must not make a status that cannot be written."""
HISTORY = 10
"""Finished rounds that the status keeps; the store has all of them."""


def status_of(context: StageContext, step: Step) -> FineTuneStatus:
    """The whole status after this step."""
    plan, updates = context.observed.plan, _updates(context)
    return FineTuneStatus(
        observed_generation=context.run.resource.metadata.generation,
        revision=context.run.resource.status.revision or revision_of(context.run.spec),
        conditions=_conditions(context, step),
        progress=progress_of(context, step, (updates.received, updates.expected) if updates else (0, 0)),
        round=_round(context, step),
        updates=updates,
        metric=_metric(context),
        hyperparameters=tuple(hyperparameter_status(one) for one in plan.hyperparameters) if plan else (),
        plans=tuple(plan_status(site, plan.plans[site], plan.rank_lines.get(site, ())) for site in sorted(plan.plans)[:STATUS_SITES])
        if plan
        else (),
        excluded={site: why[:_SENTENCE_MAX] for site, why in sorted(plan.excluded.items())[:STATUS_SITES]} if plan else {},
        measured=_measured(context),
        history=tuple(
            _history_entry(context, round_) for round_ in sorted(context.observed.commits.keys() & context.observed.evaluations)[-HISTORY:]
        ),
        store=context.run.stored_at,
        export=names.EXPORT_ADAPTER if step.end is End.COMPLETE and context.run.spec.export.adapter else "",
    )


def stored_at(resource: FederatedFineTune) -> StoreStatus | None:
    """Where the run's results are by its spec; None if that names no store."""
    store = resource.spec.store
    if store is None:
        return None
    return StoreStatus(
        bucket=store.bucket,
        prefix=Run(resource, ()).prefix,
        endpoint=store.endpoint,
        region=store.region,
        credentials_secret_ref=store.credentials_secret_ref,
    )


def blocked(status: FineTuneStatus, reason: str, message: str, *, generation: int, now: float) -> FineTuneStatus:
    """The status of a run that cannot continue for now, for this reason. Its spec is valid; what else is known stays as it was."""
    observations = (
        Observation(ConditionType.VALID, True, Reason.SPEC_VALID),
        Observation(ConditionType.PROGRESSING, False, reason, message),
        *_end_observations(None, reason, message),
    )
    return _with_conditions(status, observations, generation=generation, now=now)


def invalid(status: FineTuneStatus, problems: Sequence[str], *, generation: int, now: float) -> FineTuneStatus:
    """The status of a run whose spec is invalid, until an edit corrects it. A run that has ended stays Complete or Failed."""
    truths = {ConditionType.VALID: False, ConditionType.PROGRESSING: False, ConditionType.STALLED: True, ConditionType.READY: False}
    observations = [Observation(kind, is_true, Reason.SPEC_INVALID, "; ".join(problems)) for kind, is_true in truths.items()]
    if _end_condition(status) is None:
        observations += [
            Observation(ConditionType.COMPLETE, False, Reason.NOT_FINISHED),
            Observation(ConditionType.FAILED, False, Reason.NOT_FAILED),
        ]
    return _with_conditions(status, observations, generation=generation, now=now)


def finished(status: FineTuneStatus, *, generation: int, now: float) -> FineTuneStatus:
    """The status of a run that has ended, for this generation of its spec: an edit does not change how the run ended."""
    condition = _end_condition(status)
    if condition is None:
        return status
    end = End.FAILED if condition.type == ConditionType.FAILED else End.COMPLETE
    observations = (
        Observation(ConditionType.VALID, True, Reason.SPEC_VALID),
        Observation(ConditionType.PROGRESSING, False, condition.reason, condition.message),
        *_end_observations(end, condition.reason, condition.message),
    )
    return _with_conditions(status, observations, generation=generation, now=now)


def tracked(status: FineTuneStatus, observation: Observation, *, generation: int, now: float) -> FineTuneStatus:
    """The status with what is known of the run's trackers; nothing else of it changes."""
    conditions = conditions_of((observation,), status.conditions, kinds=ConditionType, generation=generation, now=now)
    return status.model_copy(update={"conditions": conditions})


def _with_conditions(status: FineTuneStatus, observations: Sequence[Observation], *, generation: int, now: float) -> FineTuneStatus:
    conditions = conditions_of(observations, status.conditions, kinds=ConditionType, generation=generation, now=now)
    return status.model_copy(update={"conditions": conditions, "observed_generation": generation})


def _conditions(context: StageContext, step: Step) -> tuple[Condition, ...]:
    suspended = context.run.spec.suspend and step.end is None
    observations = (
        Observation(ConditionType.VALID, True, Reason.SPEC_VALID),
        _profiled_observation(context, step),
        _planned_observation(context),
        Observation(ConditionType.PROGRESSING, step.end is None and not suspended, step.reason, step.message),
        Observation(
            ConditionType.SUSPENDED,
            suspended,
            Reason.SUSPENDED_BY_SPEC if suspended else Reason.NOT_SUSPENDED,
            step.message if suspended else "",
        ),
        *_end_observations(step.end, step.reason, step.message),
    )
    resource, tracked = context.run.resource, context.observed.tracked
    before = [one for one in resource.status.conditions if one.type != TRACKED or tracked is not None]
    known = (*observations, tracked) if tracked is not None else observations
    return conditions_of(known, before, kinds=ConditionType, generation=resource.metadata.generation, now=context.now)


def _planned_observation(context: StageContext) -> Observation:
    """Whether the round is planned; of a run whose sites have odd labels with what is odd about them."""
    plan = context.observed.plan
    if not context.is_planned:
        return Observation(ConditionType.PLANNED, False, Reason.WAITING)
    return Observation(ConditionType.PLANNED, True, Reason.ROUND_PLANNED, "; ".join(plan.label_notes) if plan else "")


def _end_observations(end: End | None, reason: str, message: str) -> tuple[Observation, ...]:
    """Whether and how the run has ended, as batch tools (Complete, Failed) and kstatus (Stalled, Ready) read it."""
    is_complete, is_failed = end is End.COMPLETE, end is End.FAILED
    return (
        Observation(ConditionType.COMPLETE, is_complete, *((reason, message) if end else (Reason.NOT_FINISHED,))),
        Observation(ConditionType.FAILED, is_failed, *((reason, message) if is_failed else (Reason.NOT_FAILED,))),
        Observation(ConditionType.STALLED, is_failed, *((reason, message) if is_failed else (Reason.NOT_STALLED,))),
        Observation(ConditionType.READY, is_complete, reason, message),
    )


def _end_condition(status: FineTuneStatus) -> Condition | None:
    """The condition that says how the run ended; None while it has not."""
    ends = (ConditionType.COMPLETE, ConditionType.FAILED)
    return next((one for one in status.conditions if one.type in ends and one.status is ConditionStatus.TRUE), None)


def _profiled_observation(context: StageContext, step: Step) -> Observation:
    is_profiled = bool(context.observed.plans) or (step.reason is not Reason.PROFILING and bool(context.observed.profiles))
    plan = context.observed.plan
    excluded = "; ".join(f"{site} is left out: {why}" for site, why in sorted(plan.excluded.items())) if plan else ""
    reason = (Reason.SITES_LEFT_OUT if excluded else Reason.ALL_PROFILED) if is_profiled else Reason.PROFILING
    return Observation(ConditionType.PROFILED, is_profiled, reason, excluded)


def _round(context: StageContext, step: Step) -> int:
    """The round under way, 0 before the first plan; the last committed round from the end of the last round on."""
    is_under_way = context.observed.round in context.observed.plans and end_reason_of(context) is None and step.end is None
    return context.observed.round if is_under_way else context.observed.last_round


def _updates(context: StageContext) -> UpdatesStatus | None:
    """The updates of the round under way or, if none is, of the last commit; None before round 1 is planned."""
    observed = context.observed
    if observed.round in observed.plans and end_reason_of(context) is None:
        return updates_under_way(context.plan, training_states(context), _refused_sites(observed))
    last = max(observed.commits, default=None)
    return None if last is None else committed_updates(observed.commits[last], observed.plans.get(last))


def _refused_sites(observed: Observed) -> set[str]:
    """With an update that was refused, at first sight or by the gate."""
    by_gate = {site for site, verdicts in observed.verdicts.items() if any(not verdict.accepted for verdict in verdicts.values())}
    return by_gate | observed.refused_updates.keys()


def updates_under_way(plan: RoundPlan, states: WorkStates, refused_sites: Collection[str]) -> UpdatesStatus:
    """The updates of a round before its commit.

    Args:
        plan: the round's plan.
        states: the training of each of the round's sites; that of a refused update is dropped.
        refused_sites: those with an update that was refused; another attempt may have been accepted.
    """
    received = sum(isinstance(state, Done) for state in states.values())
    dropped = {site: state.why for site, state in states.items() if isinstance(state, Dropped)}
    refused = dropped.keys() & refused_sites
    return UpdatesStatus(
        expected=len(states),
        needed=plan.needed,
        received=received,
        refused=len(refused),
        late=_late(why for site, why in dropped.items() if site not in refused),
        summary=f"{received}/{len(states)}",
    )


def committed_updates(commit: CommitSummary, plan: PlanSummary | None) -> UpdatesStatus:
    """The updates of a committed round; of a round whose plan is no longer observed, those that it received were expected and needed."""
    received = len(commit.contributions)
    return UpdatesStatus(
        expected=len(plan.selected) if plan else received,
        needed=plan.needed if plan else received,
        received=received,
        refused=len(commit.refused),
        late=_late(commit.absent.values()),
        summary=f"{received}/{len(plan.selected) if plan else received}",
    )


def _late(reasons: Iterable[str]) -> int:
    return sum(why.startswith(DEADLINE_EXCEEDED) for why in reasons)


def _metric(context: StageContext) -> MetricStatus | None:
    """The newest value of the run's metric that enough sites measured."""
    name = primary_metric(context.run.spec)
    for round_ in sorted(context.observed.evaluations, reverse=True):
        evaluation = context.observed.evaluations[round_]
        value = metric_value(evaluation, name)
        if value is not None and has_quorum(evaluation, name):
            return MetricStatus(name=name, value=round(value, _DIGITS), round=round_)
    return None


def _measured(context: StageContext) -> tuple[MeasuredStatus, ...]:
    """By site of the run: how well its newest aggregated training used what the site has, of the rounds that are observed."""
    sites = {site.name for site in context.run.sites}
    commits = sorted(context.observed.commits.items())
    newest = {one.site: (round_, one) for round_, commit in commits for one in commit.contributions if one.site in sites}
    found = [(site, round_, one.measured) for site, (round_, one) in sorted(newest.items()) if one.measured is not None]
    return tuple(measured_status(*one) for one in found[:STATUS_SITES])


def measured_status(site: str, round_: int, found: Measurement) -> MeasuredStatus:
    """What a training needed and how well it used it, rounded for people."""
    efficiency = found.efficiency or Efficiency()
    return MeasuredStatus(
        site=site,
        round=round_,
        tokens_per_second=_rounded(efficiency.tokens_per_second),
        padded_tokens_per_second=_rounded(efficiency.padded_tokens_per_second),
        mfu=_rounded(efficiency.mfu),
        tokens_per_joule=_rounded(efficiency.tokens_per_joule),
        energy_source=efficiency.energy_source.value if efficiency.energy_source else None,
        granularity=_rounded(efficiency.granularity),
        uploaded_bytes=min(found.uploaded_bytes, _LARGEST),
        downloaded_bytes=min(found.downloaded_bytes, _LARGEST),
        bits_per_second=None if efficiency.bits_per_second is None else round(efficiency.bits_per_second),
        codecs=efficiency.codecs,
        update_cosine=_rounded(efficiency.update_cosine),
    )


def _history_entry(context: StageContext, round_: int) -> RoundStatus:
    commit, evaluation = context.observed.commits[round_], context.observed.evaluations[round_]
    plan = context.observed.plans.get(round_)
    return RoundStatus(
        round=round_,
        updates=committed_updates(commit, plan).summary,
        metric=_rounded(metric_value(evaluation, primary_metric(context.run.spec))),
        loss=_rounded(evaluation.loss),
        evaluators=evaluation.sites[:STATUS_SITES] if context.run.spec.sites.per_round is not None else (),
        seconds=round(max(0.0, commit.finished_at - plan.started_at) if plan else 0.0, 1),
        uploaded_bytes=commit.bytes_read,
        truncated_energy=round(commit.truncated_energy, _DIGITS),
        left_out=_sites_without_contribution(context, commit),
        clipped=_clipped(commit),
        dropped_rows=_dropped_rows(commit),
        missing_evaluations={site: why[:_NOTE_MAX] for site, why in sorted(evaluation.missing.items())[:STATUS_SITES]},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _sites_without_contribution(context: StageContext, commit: CommitSummary) -> dict[str, str]:
    """The round's sites whose update is not in the commit, with the reason of each."""
    plan = context.observed.plans.get(commit.round)
    contributed = {contribution.site for contribution in commit.contributions}
    unselected = {one.site: _NOT_SELECTED for one in commit.contributions if one.share == 0}
    refused = {site: f"{verdict.reason}: {verdict.message}"[:_SENTENCE_MAX] for site, verdict in commit.refused.items()}
    absent = {
        site: commit.absent.get(site, "NoUpdate: the site sent no update, and no reason is known")[:_SENTENCE_MAX]
        for site in (plan.selected if plan else ())
        if site not in contributed
    }
    return dict(sorted((absent | refused | unselected).items())[:STATUS_SITES])


def _clipped(commit: CommitSummary) -> dict[str, str]:
    clipped = [one for one in commit.contributions if one.clipped][:STATUS_SITES]
    return {one.site: f"{counted(one.clipped, 'increment')} shortened, the most to {one.smallest_clip:.2g} of it" for one in clipped}


def _dropped_rows(commit: CommitSummary) -> dict[str, int]:
    dropped = [one for one in commit.contributions if one.dropped_rows][:STATUS_SITES]
    return {one.site: one.dropped_rows for one in dropped}
