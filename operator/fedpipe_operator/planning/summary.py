"""Summaries of a plan: rows of text for `fedpipe plan`, and the entry in a run's status."""

from typing import NamedTuple

from fedpipe_operator.api import HyperparameterStatus, PlanStatus
from fedpipe_operator.formatting import bytes_text, seconds_text
from fedpipe_operator.planning.hyperparameters import Hyperparameter
from fedpipe_operator.planning.modes import Plans
from fedpipe_trainer.contract import Plan

_STATUS_MAX_REASONS = 12
_STATUS_MAX_LENGTH = 1024


class PlanRow(NamedTuple):
    """One site. For a site without a plan only `site` and `why` are set."""

    site: str
    why: tuple[str, ...]
    bits: str = ""
    batch: str = ""
    """Samples a step, as passes × samples."""
    layers: str = ""
    rank: str = ""
    adapters: str = ""
    steps: str = ""
    memory: str = ""
    duration: str = ""
    upload: str = ""
    limit: str = ""


def plan_rows(plans: Plans) -> list[PlanRow]:
    """A row for every site in order of name: first the sites with a plan, then the excluded sites with the reason."""
    planned = [_row(site, plan) for site, plan in sorted(plans.plans.items())]
    return planned + [PlanRow(site=site, why=(reason,)) for site, reason in sorted(plans.excluded.items())]


def plan_status(site: str, plan: Plan) -> PlanStatus:
    """A plan as the run's status shows it; the number and the length of the reasons are bounded."""
    return PlanStatus(
        site=site,
        bits=plan.bits,
        batch_size=plan.batch_size,
        steps=plan.steps,
        rank=max(plan.ranks.values(), default=0),
        adapters=_count_adapters(plan),
        layers=plan.trained_layers,
        micro_batch_size=plan.micro_batch,
        gradient_checkpointing=plan.gradient_checkpointing,
        cache_activations=plan.cache_activations,
        upload=plan.forecast.upload_bytes,
        limited_by=plan.limited_by,
        memory=plan.forecast.memory_bytes,
        seconds=round(plan.forecast.seconds, 1),
        why=tuple(sentence[:_STATUS_MAX_LENGTH] for sentence in plan.why[:_STATUS_MAX_REASONS]),
    )


def hyperparameter_status(one: Hyperparameter) -> HyperparameterStatus:
    """A hyperparameter as the run's status shows it."""
    return HyperparameterStatus(name=one.name, value=one.value, reason=one.reason)


def hyperparameter_text(one: Hyperparameter | HyperparameterStatus) -> str:
    """A hyperparameter and its reason in one line."""
    return f"{one.name} {one.value}: {one.reason}"


def _row(site: str, plan: Plan) -> PlanRow:
    ranks = sorted({rank for rank in plan.ranks.values() if rank})
    return PlanRow(
        site=site,
        bits=str(plan.bits),
        batch=_batch(plan),
        layers=f"{plan.trained_layers}/{plan.layers}",
        rank="–".join(str(rank) for rank in sorted({ranks[0], ranks[-1]})) if ranks else "0",
        adapters=str(_count_adapters(plan)),
        steps=str(plan.steps),
        memory=bytes_text(plan.forecast.memory_bytes),
        duration=seconds_text(plan.forecast.seconds),
        upload=bytes_text(plan.forecast.upload_bytes),
        limit=plan.limited_by,
        why=plan.why,
    )


def _batch(plan: Plan) -> str:
    """Samples of a step: `16`, or `4 × 4` for four passes of four samples; with a mark where activations are recomputed or cached."""
    passes = -(-plan.batch_size // plan.micro_batch)
    marks = ("*" if plan.gradient_checkpointing else "") + ("†" if plan.cache_activations else "")
    return (f"{passes} × {plan.micro_batch}" if passes > 1 else str(plan.batch_size)) + marks


def _count_adapters(plan: Plan) -> int:
    return sum(rank > 0 for rank in plan.ranks.values())
