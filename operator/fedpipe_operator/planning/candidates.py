"""The candidates of a site: every choice that the run allows, each with its memory, time and byte forecast.

A mode (`planner`) only chooses among these. A mode that gives each weight its own rank builds its choices with
`make_candidate` as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

from fedpipe_operator import conversion
from fedpipe_operator.api import FineTuneSpec, parse_duration
from fedpipe_operator.planning.memory_model import RunOptions, predict_peak
from fedpipe_operator.planning.sizes import uniform_ranks
from fedpipe_operator.planning.time_model import fixed_seconds, global_bytes, step_seconds, wire_bytes
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Bits, Forecast, Plan

MEMORY_FRACTION: Final = 0.85
"""The fraction of a site's memory that a plan's forecast may use: forecasts are required to be within 15 % of the measurement."""
DEADLINE_FRACTION: Final = 0.8
"""The fraction of a round's deadline that a plan's forecast may use: the rest is for start-up, validation and a site that slows down."""


@dataclass(frozen=True)
class PlanRequest:
    """What the run requests of every site."""

    spec: FineTuneSpec
    head: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors that are trained in full."""

    @property
    def deadline(self) -> float:
        """Seconds that the forecast of a round may use."""
        return DEADLINE_FRACTION * parse_duration(self.spec.rounds.deadline)

    @property
    def options(self) -> RunOptions:
        """The run's part of the memory model's input. The global adapter has at most the largest rank that the run allows."""
        return RunOptions(
            head=self.head,
            global_rank=max(self.spec.planning.ranks),
            checkpointing=bool(self.spec.training.gradient_checkpointing),
        )


@dataclass(frozen=True)
class Candidate:
    """One choice for one site, with its forecast."""

    bits: Bits
    batch: int
    ranks: Mapping[str, int]
    requested_steps: int
    """The steps of all epochs, or `training.maxSteps`."""
    steps: int
    """The requested steps that fit before the deadline; 0: none fits."""
    forecast: Forecast

    @property
    def rank(self) -> int:
        """The largest rank of any weight."""
        return max(self.ranks.values(), default=0)

    @property
    def trained_fraction(self) -> float:
        """Fraction of the requested steps that fit before the deadline: 1 − the under-training rate."""
        return self.steps / self.requested_steps

    def fits_memory(self, site: SiteProfile) -> bool:
        """Whether the forecast leaves the site its memory margin."""
        return self.forecast.memory_bytes <= MEMORY_FRACTION * site.memory_bytes

    def is_feasible(self, site: SiteProfile) -> bool:
        """Whether it fits the site's memory and at least one step fits before the deadline."""
        return self.fits_memory(site) and self.steps > 0


def single_rank_candidates(request: PlanRequest, site: SiteProfile) -> tuple[Candidate, ...]:
    """All bits, batches and ranks that the run allows and the device supports, one rank for all weights."""
    planning = request.spec.planning
    return tuple(
        make_candidate(request, site, bits=bits, batch=batch, ranks=uniform_ranks(site.base.weights, rank))
        for bits in sorted(set(planning.bits) - set(site.unsupported))
        for batch in sorted(set(planning.batch_sizes))
        for rank in sorted(set(planning.ranks) - {0})
    )


def make_candidate(request: PlanRequest, site: SiteProfile, *, bits: Bits, batch: int, ranks: Mapping[str, int]) -> Candidate:
    """Forecast what a choice needs at a site, with as many of the requested steps as fit before the deadline."""
    upload = wire_bytes(site, ranks, request.head)
    download = global_bytes(site, request.options.global_rank, request.head)
    fixed = fixed_seconds(site, bits, upload=upload, download=download)
    step = step_seconds(site, bits, batch)
    requested = requested_steps(request.spec, site.train_samples, batch)
    steps = min(requested, max(0, int((request.deadline - fixed) / step)))
    length = longest_sequence(request.spec, site)
    memory = predict_peak(site, bits=bits, batch=batch, length=length, ranks=ranks, options=request.options)
    return Candidate(
        bits=bits,
        batch=batch,
        ranks=ranks,
        requested_steps=requested,
        steps=steps,
        forecast=Forecast(memory_bytes=memory, seconds=fixed + steps * step, upload_bytes=upload, download_bytes=download),
    )


def requested_steps(spec: FineTuneSpec, samples: int, batch: int) -> int:
    """Optimiser steps of `training.epochs` passes over the samples, at most `training.maxSteps`, at least one."""
    steps = max(1, ceil((spec.training.epochs or 1.0) * samples / batch))
    return steps if spec.training.max_steps is None else min(steps, spec.training.max_steps)


def longest_sequence(spec: FineTuneSpec, site: SiteProfile) -> int:
    """Tokens of the site's longest sample; `task.maxLength` when its profile does not contain that length."""
    return min(spec.task.max_length, site.longest_tokens or spec.task.max_length)


def make_plan(request: PlanRequest, candidate: Candidate, reasons: tuple[str, ...]) -> Plan:
    """A feasible candidate as the plan that the trainer gets."""
    training = request.spec.training
    return Plan(
        bits=candidate.bits,
        batch_size=candidate.batch,
        steps=candidate.steps,
        ranks=dict(candidate.ranks),
        scaling=conversion.scaling(training.scaling),
        alpha=training.alpha,
        gradient_checkpointing=bool(training.gradient_checkpointing),
        forecast=candidate.forecast,
        why=reasons,
    )
