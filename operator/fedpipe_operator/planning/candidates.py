"""The candidates: every choice that a run allows at a site, priced by the memory model and the time model.

A mode (`auto`, `uniform`) only chooses among these. One that gives each weight a rank of its own prices its
choices by `price` as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Final

from fedpipe_operator.api import FineTuneSpec, seconds
from fedpipe_operator.planning.duration import fixed_seconds, global_bytes, step_seconds, wire_bytes
from fedpipe_operator.planning.memory import Terms, predict_peak
from fedpipe_operator.planning.sizes import uniform_ranks
from fedpipe_operator.sites.profile import SiteProfile
from fedpipe_trainer.contract import Bits, Forecast, Plan

MEMORY_SHARE: Final = 0.85
"""Of a site's memory, what a plan may be forecast to need: forecasts are held to 15 % of what is measured."""
DEADLINE_SHARE: Final = 0.8
"""Of a round's deadline, what a plan may be forecast to take: the rest is for starting up, validating, and a site that slows down."""


@dataclass(frozen=True)
class Request:
    """What the run asks of every site."""

    spec: FineTuneSpec
    head: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors that are trained whole."""

    @property
    def deadline(self) -> float:
        """Seconds a round may be forecast to take."""
        return DEADLINE_SHARE * seconds(self.spec.rounds.deadline)

    @property
    def terms(self) -> Terms:
        """What the memory model must know of the run. The global adapter has at most the largest rank that the run allows."""
        return Terms(
            head=self.head,
            tail_rank=max(self.spec.planning.ranks),
            checkpointing=self.spec.training.gradient_checkpointing,
        )


@dataclass(frozen=True)
class Candidate:
    """One choice for one site, with its price."""

    bits: Bits
    batch: int
    ranks: Mapping[str, int]
    wanted_steps: int
    """Those of all epochs, or `training.maxSteps`."""
    steps: int
    """What of them the deadline leaves; 0: not even one."""
    forecast: Forecast

    @property
    def rank(self) -> int:
        """The largest of any weight."""
        return max(self.ranks.values(), default=0)

    @property
    def trained_share(self) -> float:
        """Share of the wanted steps that the deadline leaves: 1 − the under-training rate."""
        return self.steps / self.wanted_steps

    def fits_memory(self, site: SiteProfile) -> bool:
        """Whether the forecast leaves the site its margin."""
        return self.forecast.memory_bytes <= MEMORY_SHARE * site.memory_bytes

    def is_possible(self, site: SiteProfile) -> bool:
        """Whether the site can carry this at all."""
        return self.fits_memory(site) and self.steps > 0


def uniform_candidates(request: Request, site: SiteProfile) -> tuple[Candidate, ...]:
    """All bits, batches and ranks that the run allows and the device can do, one rank for all weights."""
    planning = request.spec.planning
    return tuple(
        price(request, site, bits=bits, batch=batch, ranks=uniform_ranks(site.base.weights, rank))
        for bits in sorted(set(planning.bits) - set(site.unsupported))
        for batch in sorted(set(planning.batch_sizes))
        for rank in sorted(set(planning.ranks) - {0})
    )


def price(request: Request, site: SiteProfile, *, bits: Bits, batch: int, ranks: Mapping[str, int]) -> Candidate:
    """What a choice would need at a site, with as many of the wanted steps as the deadline leaves."""
    upload = wire_bytes(site, ranks, request.head)
    download = global_bytes(site, request.terms.tail_rank, request.head)
    fixed = fixed_seconds(site, bits, upload=upload, download=download)
    step = step_seconds(site, bits, batch)
    wanted = wanted_steps(request.spec, site.train_samples, batch)
    steps = min(wanted, max(0, int((request.deadline - fixed) / step)))
    memory = predict_peak(site, bits=bits, batch=batch, length=longest(request.spec, site), ranks=ranks, terms=request.terms)
    return Candidate(
        bits=bits,
        batch=batch,
        ranks=ranks,
        wanted_steps=wanted,
        steps=steps,
        forecast=Forecast(memory_bytes=memory, seconds=fixed + steps * step, upload_bytes=upload, download_bytes=download),
    )


def wanted_steps(spec: FineTuneSpec, samples: int, batch: int) -> int:
    """Optimiser steps that take `training.epochs` passes over the samples, at most `training.maxSteps`, at least one."""
    steps = max(1, ceil(spec.training.epochs * samples / batch))
    return steps if spec.training.max_steps is None else min(steps, spec.training.max_steps)


def longest(spec: FineTuneSpec, site: SiteProfile) -> int:
    """Tokens of the site's longest sample; `task.maxLength` when its profile does not say."""
    return min(spec.task.max_length, site.longest_tokens or spec.task.max_length)


def plan_of(request: Request, candidate: Candidate, why: tuple[str, ...]) -> Plan:
    """A possible candidate as the plan that the trainer gets."""
    training = request.spec.training
    return Plan(
        bits=candidate.bits,
        batch_size=candidate.batch,
        steps=candidate.steps,
        ranks=dict(candidate.ranks),
        scaling=training.scaling,
        alpha=training.alpha,
        forecast=candidate.forecast,
        why=why,
    )
