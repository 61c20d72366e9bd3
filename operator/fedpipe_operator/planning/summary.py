"""Summaries of a plan: rows of text for `fedpipe plan`, and the entry in a run's status."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from fedpipe_operator.api import HyperparameterStatus, PlanStatus
from fedpipe_operator.formatting import bytes_text, counted, seconds_text
from fedpipe_operator.planning.hyperparameters import Hyperparameter
from fedpipe_operator.planning.modes import Plans
from fedpipe_operator.planning.rank_lines import rank_lines
from fedpipe_trainer.contract import Plan

_STATUS_MAX_REASONS = 12
_STATUS_MAX_LENGTH = 1024
_STATUS_MAX_FORECAST = 256
_NO_SCORES: Mapping[str, float] = MappingProxyType({})


class PlanRow(NamedTuple):
    """One site. For a site without a plan only `site` and `why` are set."""

    site: str
    why: tuple[str, ...]
    bits: str = ""
    batch: str = ""
    """Samples a step, as micro-batches × samples."""
    layers: str = ""
    rank: str = ""
    adapters: str = ""
    steps: str = ""
    memory: str = ""
    duration: str = ""
    upload: str = ""
    limit: str = ""
    ranks: tuple[str, ...] = ()
    """Which weights have which rank, in lines."""
    forecast: str = ""
    """What is predicted, in words."""


def plan_rows(plans: Plans, importance: Mapping[str, float] = _NO_SCORES) -> list[PlanRow]:
    """A row for every site in order of name: first the sites with a plan, then the excluded sites with the reason.

    Args:
        plans: of a round.
        importance: score by weight, of mean 1.
    """
    planned = [_row(site, plan, importance) for site, plan in sorted(plans.plans.items())]
    return planned + [PlanRow(site=site, why=(reason,)) for site, reason in sorted(plans.excluded.items())]


def forecast_text(plan: Plan) -> str:
    """What a plan is predicted to need, in one line."""
    return f"predicted: {_forecast_text(plan)}"


def _forecast_text(plan: Plan) -> str:
    predicted = plan.forecast
    steps = f"{seconds_text(predicted.step_seconds)} of them for {counted(plan.steps, 'step')}"
    return (
        f"{bytes_text(predicted.memory_bytes)} of memory; {seconds_text(predicted.seconds)} a round, {steps};"
        f" {bytes_text(predicted.upload_bytes)} up, {bytes_text(predicted.download_bytes)} down"
    )


def plan_status(site: str, plan: Plan, lines: Sequence[str] = ()) -> PlanStatus:
    """A plan as the run's status shows it; the number and the length of its sentences are bounded.

    Args:
        site: its name.
        plan: its plan.
        lines: which weights have which rank, in words.
    """
    return PlanStatus(
        site=site,
        bits=plan.bits,
        batch_size=plan.batch_size,
        steps=plan.steps,
        rank=max(plan.ranks.values(), default=0),
        adapters=_count_adapters(plan),
        layers=plan.trained_layers,
        model_layers=plan.layers,
        micro_batch_size=plan.micro_batch,
        gradient_checkpointing=plan.gradient_checkpointing,
        cache_activations=plan.cache_activations,
        forecast=_forecast_text(plan)[:_STATUS_MAX_FORECAST],
        step_seconds=round(plan.forecast.step_seconds, 1),
        upload=plan.forecast.upload_bytes,
        download=plan.forecast.download_bytes,
        limited_by=plan.limited_by,
        ranks=tuple(lines),
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


def _row(site: str, plan: Plan, importance: Mapping[str, float]) -> PlanRow:
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
        ranks=rank_lines(plan.ranks, importance),
        forecast=forecast_text(plan),
        why=plan.why,
    )


def _batch(plan: Plan) -> str:
    """Samples of a step: `16`, or `4 × 4` for four micro-batches of four; with a mark where activations are recomputed or cached."""
    micro_batches = -(-plan.batch_size // plan.micro_batch)
    marks = ("*" if plan.gradient_checkpointing else "") + ("†" if plan.cache_activations else "")
    return (f"{micro_batches} × {plan.micro_batch}" if micro_batches > 1 else str(plan.batch_size)) + marks


def _count_adapters(plan: Plan) -> int:
    return sum(rank > 0 for rank in plan.ranks.values())
