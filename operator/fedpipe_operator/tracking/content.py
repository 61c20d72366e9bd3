"""What trackers are told of a run: figures of each finished round, parameters, and who it is. Pure: records in, values out.

Of the sites' losses it is what Prometheus shows (`metrics.run_record`): the mean over the steps of a training, which every policy allows to
be told, and never the loss of a single step. Nothing here quotes data: no row, no label, no text of a site.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fedpipe_operator.api import Condition, ConditionStatus, ConditionType, FederatedFineTune, FineTuneSpec
from fedpipe_operator.rounds.records import Contribution, RoundCommit, RoundEvaluation, RoundPlan, SiteEvaluation
from fedpipe_trainer.contract import Plan

MOST_FIGURES: Final = 850
"""Of a round: with parameters and tags no more than the 1000 that MLflow takes at once, and so either has or has not. Sites beyond are left
out, in order of name; the store has all."""
_TEXT_MAX: Final = 500
"""Characters of a parameter's or a tag's value: MLflow servers before version 2 take no more."""
_PLANNED: Final = {"bits", "batch_size", "micro_batch_size", "steps", "ranks", "layers", "lowest_layer", "forecast", "limited_by", "why"}


@dataclass(frozen=True)
class RoundRecords:
    """The records of a finished round, as the store has them."""

    evaluation: RoundEvaluation
    """Of round 0, the base, the only one."""
    plan: RoundPlan | None = None
    commit: RoundCommit | None = None
    train_losses: Mapping[str, float] = field(default_factory=dict)
    """By site of the commit: the mean over the steps of its training."""


@dataclass(frozen=True)
class RoundEntry:
    """The figures of a finished round."""

    round: int
    at: float
    """Unix seconds: when it was finished."""
    figures: Mapping[str, float]
    """Of the round."""
    by_site: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class End:
    """How a run ended."""

    is_complete: bool
    at: str
    """As Kubernetes writes a time."""


def entry_of(records: RoundRecords) -> RoundEntry:
    """The figures of a round, finite ones, and at most `MOST_FIGURES`."""
    evaluation = records.evaluation
    figures = _finite({"loss": evaluation.loss, **evaluation.metrics, **_of_commit(records)})
    measured: dict[str, dict[str, float | None]] = {site: _of_evaluation(one) for site, one in evaluation.sites.items()}
    for one in records.commit.contributions if records.commit else ():
        plan = records.plan.plans.get(one.site) if records.plan else None
        measured.setdefault(one.site, {}).update(_of_contribution(one, records.train_losses.get(one.site), plan))
    sites = ((site, _finite(measured[site])) for site in sorted(measured))
    return RoundEntry(evaluation.round, evaluation.finished_at, figures, dict(_as_many_as_fit(sites, MOST_FIGURES - len(figures))))


def parameters(spec: FineTuneSpec, first: RoundPlan) -> dict[str, str]:
    """The parameters of a run: of its spec, and what was chosen where that says nothing. `first` is the plan of round 1."""
    chosen = {one.name: one.value for one in first.hyperparameters}
    of_spec = {
        "model": spec.model.source,
        "task": spec.task.type,
        "rounds.count": spec.rounds.count,
        "sites": len(first.plans),
        "sites.perRound": spec.sites.per_round,
        "sites.quorum": spec.sites.quorum,
        "planning.mode": spec.planning.mode.value,
        "planning.bits": ",".join(map(str, spec.planning.bits)),
        "planning.ranks": ",".join(map(str, spec.planning.ranks)),
        "planning.importance": spec.planning.importance.value,
        "aggregation.method": spec.aggregation.method.value,
        "aggregation.rule": spec.aggregation.rule.value,
        "training.seed": spec.training.seed,
        "training.epochs": spec.training.epochs,
        "training.maxSteps": spec.training.max_steps,
    }
    return {name: str(value)[:_TEXT_MAX] for name, value in (of_spec | chosen).items() if value is not None}


def identity(resource: FederatedFineTune, sites: Iterable[str], store: str) -> dict[str, str]:
    """Tags that say which run it is, at which sites, and where its results are."""
    meta = resource.metadata
    tags = {"namespace": meta.namespace, "name": meta.name, "uid": resource.results_uid, "sites": ", ".join(sorted(sites)), "store": store}
    return {f"fedpipe.{name}": value[:_TEXT_MAX] for name, value in tags.items()}


def shown_plan(plan: RoundPlan, sites: Iterable[str]) -> str:
    """A round's plan as an artefact: what each of these sites trains, and why; without the labels, which are words of the sites' data."""
    fields = {"round", "started_at", "selected", "evaluators", "needed", "hyperparameters", "importance", "importance_note"}
    shown = plan.model_copy(update={"plans": {site: plan.plans[site] for site in sorted(sites) if site in plan.plans}})
    return shown.model_dump_json(by_alias=True, indent=1, include={**dict.fromkeys(fields, True), "plans": {"__all__": _PLANNED}})


def end_of(conditions: Iterable[Condition]) -> End | None:
    """How the run of these conditions ended; None while it has not."""
    ends = (ConditionType.COMPLETE, ConditionType.FAILED)
    found = next((one for one in conditions if one.type in ends and one.status is ConditionStatus.TRUE), None)
    return None if found is None else End(found.type == ConditionType.COMPLETE, found.last_transition_time)


def _of_commit(records: RoundRecords) -> dict[str, float | None]:
    commit, plan = records.commit, records.plan
    if commit is None:
        return {}
    return {
        "round/updates": len(commit.contributions),
        "round/refused": len(commit.refused),
        "round/absent": len(commit.absent),
        "round/late": len(commit.late),
        "round/seconds": max(0.0, commit.finished_at - plan.started_at) if plan else None,
        "round/aggregation_seconds": commit.seconds,
        "round/uploaded_bytes": commit.bytes_read,
        "round/truncated_energy": max(commit.truncated_energy.values(), default=0.0),
    }


def _of_evaluation(one: SiteEvaluation) -> dict[str, float | None]:
    return {"loss": one.loss, **one.metrics, "validation_samples": one.samples}


def _of_contribution(one: Contribution, train_loss: float | None, plan: Plan | None) -> dict[str, float | None]:
    measured = one.measured
    figures: dict[str, float | None] = {
        "train_loss": train_loss,
        "samples": one.samples,
        "trained_samples": one.trained_samples,
        "steps": one.steps,
        "share": one.share,
        "norm": one.norm,
        "alignment": one.alignment,
        "clipped": one.clipped,
        "dropped_rows": one.dropped_rows,
    }
    if measured is not None:
        figures |= {
            "seconds": measured.step_seconds + measured.other_seconds,
            "step_seconds": measured.step_seconds,
            "peak_memory_bytes": measured.peak_memory_bytes,
            "uploaded_bytes": measured.uploaded_bytes,
            "downloaded_bytes": measured.downloaded_bytes,
        }
    return figures | (_of_plan(plan) if plan else {})


def _of_plan(plan: Plan) -> dict[str, float]:
    return {
        "plan/bits": plan.bits,
        "plan/rank": max(plan.ranks.values(), default=0),
        "plan/steps": plan.steps,
        "plan/layers": plan.trained_layers,
        "plan/seconds": plan.forecast.seconds,
        "plan/memory_bytes": plan.forecast.memory_bytes,
    }


def _as_many_as_fit(sites: Iterable[tuple[str, dict[str, float]]], room: int) -> Iterator[tuple[str, dict[str, float]]]:
    for site, figures in sites:
        room -= len(figures)
        if room < 0:
            return
        yield site, figures


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
