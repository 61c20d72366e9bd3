"""What a run requests of every site: the part of the planner's input that is not a site."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from fedpipe_operator import conversion
from fedpipe_operator.api import FineTuneSpec, longest_sample, parse_duration
from fedpipe_operator.planning.memory_model import RunOptions
from fedpipe_operator.planning.passes import largest_step, steps_of_passes
from fedpipe_operator.planning.sizes import WIRE_BYTES, element_bytes, global_file_bytes, update_bytes
from fedpipe_operator.planning.time_model import global_bytes
from fedpipe_operator.sites import Correction, KeptActivations, SiteProfile
from fedpipe_trainer.codecs import TensorCodec, ladder, update_codecs
from fedpipe_trainer.contract import MAX_STEPS

MEMORY_FRACTION: Final = 0.85
"""The fraction of a site's memory that a plan's forecast may use: forecasts are required to be within 15 % of the measurement."""
DEADLINE_FRACTION: Final = 0.8
"""The fraction of a round's deadline that a plan's forecast may use: the rest is for start-up, validation and a site that slows down."""
MAX_PASSES: Final = 3.0
"""Passes over a site's data in one round, at most, where the spec does not say: more would fit the site's own data at the others' cost."""

_ROUNDING: Final = 1 + 1e-6


@dataclass(frozen=True)
class GivenPlan:
    """What a plan that the spec gives to a site means for the plans of the others."""

    samples: int
    """Training samples of its site."""
    min_sites: int
    """See `SiteProfile.min_sites`."""
    weights: frozenset[str]
    """Those with an adapter."""
    seconds: float
    """Of a round, as forecast."""


@dataclass(frozen=True)
class PlanRequest:
    """What the run requests of every site."""

    spec: FineTuneSpec
    head: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors that are trained in full."""
    importance: Mapping[str, float] = field(default_factory=dict)
    """Score by weight, of mean 1, with the exploring share (`importance.explore`); a weight without one has the mean."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """The same without the exploring share, for the explanation."""
    importance_note: str = ""
    """How far the scores are trusted, as a sentence."""
    corrections: Mapping[str, Correction] = field(default_factory=dict)
    """By site: how earlier rounds correct its forecasts."""
    is_stalled: bool = False
    """Whether the run has stalled: then every site trains as many layers as it can."""
    adapter_bytes: int | None = None
    """See `History.adapter_bytes`."""
    round: int = 1
    """The round that is planned."""
    rounds_left: float = 1.0
    """Rounds from this one on in which a site takes part, on average if `sites.perRound` chooses some."""
    kept: Mapping[str, KeptActivations] = field(default_factory=dict)
    """By site: what its cache holds from earlier rounds."""
    floor: int | None = None
    """No site trains a layer below, so that caches stay of use from round to round (`fleet.common_floor`). None: any site may."""
    given: Mapping[str, GivenPlan] = field(default_factory=dict)
    """By site: the plans of the spec for sites of the round that are not planned (mode Auto)."""
    lowest_covered: int = 0
    """The lowest layer with a weight that enough samples train, if all sites do: to train a deeper one would be in vain."""
    filling_rounds: float = 1.0
    """The rounds over which the time that fills a cache is spread: more than one only to compare floors."""
    _file_sizes: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of the global adapter's file, by base: the sites of a run have the same, and a large fleet asks a thousand times."""

    def correction(self, site: SiteProfile) -> Correction:
        """How this site's forecasts are corrected."""
        return self.corrections.get(site.name, Correction())

    def has_cache(self, site: SiteProfile) -> bool:
        """Whether plans of this site may count on its cache: it has one, and neither profile nor round shows that it does not work."""
        return site.has_cache and not self.cache_problem(site)

    def cache_problem(self, site: SiteProfile) -> str:
        """Why plans of this site may not count on the cache that it has, and what to do; empty if they may, or it has none."""
        return site.cache_problem or self.correction(site).cache_problem

    def memory_budget(self, site: SiteProfile) -> float:
        """Bytes that the forecast of training may reach at this site: as many as a training has just needed, whatever share that is."""
        return self._limited(site, max(self.load_budget(site), (self.correction(site).peak or 0) * _ROUNDING))

    def claimed_budget(self, site: SiteProfile) -> float:
        """The part of `memory_budget` that grows with the site's memory: without what a training has just needed."""
        return self._limited(site, self.load_budget(site))

    def _limited(self, site: SiteProfile, budget: float) -> float:
        """The budget of training as far as what ran out of memory allows it."""
        limit = self.correction(site).memory_limit
        return budget if limit is None else min(budget, float(limit))

    def load_budget(self, site: SiteProfile) -> float:
        """Bytes that the forecast of loading the base may reach. All plans share it, so what ran out of memory does not limit it."""
        return MEMORY_FRACTION * site.memory_bytes

    @property
    def deadline(self) -> float:
        """Seconds that the forecast of a round may use."""
        return DEADLINE_FRACTION * parse_duration(self.spec.rounds.deadline)

    @property
    def batch(self) -> int:
        """Samples per optimiser step. Of slow sites the planner may lower them (`batches`)."""
        return max(self.spec.planning.batch_sizes)

    def batch_of(self, site: SiteProfile) -> int:
        """Samples of this site's largest step with the run's batch: fewer where it has fewer."""
        return largest_step(site.train_samples, self.batch)

    @property
    def options(self) -> RunOptions:
        """The run's part of the memory model's input. The global adapter has at most the largest rank that the run allows."""
        is_proximal = self.spec.training.proximal_mu > 0
        return RunOptions(head=self.head, global_rank=self.spec.planning.max_rank, is_proximal=is_proximal)

    @cached_property
    def codecs(self) -> tuple[TensorCodec, ...]:
        """Those of updates, the run's first; empty: updates travel as they are."""
        return update_codecs(conversion.codec(self.spec.codec))

    @cached_property
    def _downlink_codecs(self) -> tuple[TensorCodec, ...]:
        codec = conversion.codec(self.spec.codec)
        return ladder(codec, codec.downlink) if codec else ()

    @property
    def head_bytes(self) -> int:
        """Bytes of the head in an update."""
        return update_bytes((), {}, self.head, self.codecs)

    def update_bytes(self, site: SiteProfile, ranks: Mapping[str, int]) -> int:
        """Bytes of a site's update, without the file's header, which takes no time."""
        return update_bytes(site.base.weights, ranks, self.head, self.codecs)

    def element_bytes(self, site: SiteProfile) -> float:
        """Bytes that one element of an adapter adds to an update; of a codec that saves less with lower ranks, with the lowest."""
        if not self.codecs:
            return WIRE_BYTES
        lowest = min(rank for rank in (*self.spec.planning.ranks, self.options.global_rank) if rank)
        return element_bytes(lowest, site.base.hidden_size, self.codecs)

    def download(self, site: SiteProfile) -> int:
        """Bytes of the global adapter that take time to read; where it is not known, with the largest rank that the run allows."""
        if self.adapter_bytes is not None:
            return self.adapter_bytes
        rank, codecs = self.options.global_rank, self._downlink_codecs
        return global_bytes(site, rank, self.head) if not codecs else self.download_file(site)

    def download_file(self, site: SiteProfile) -> int:
        """Bytes of the global adapter's file, with its header."""
        if self.adapter_bytes is not None:
            return self.adapter_bytes
        if site.fingerprint not in self._file_sizes:
            rank, codecs = self.options.global_rank, self._downlink_codecs
            self._file_sizes[site.fingerprint] = global_file_bytes(site.base.weights, rank, self.head, codecs)
        return self._file_sizes[site.fingerprint]

    def wanted_steps(self, site: SiteProfile, batch: int | None = None) -> int:
        """The most optimiser steps in a round: of `training.epochs` passes over the samples, and `training.maxSteps`; at least one.

        A plan can have no more than `MAX_STEPS`.

        Args:
            site: the site.
            batch: samples of a step; None: the run's.
        """
        training = self.spec.training
        steps = steps_of_passes(training.epochs or MAX_PASSES, site.train_samples, batch or self.batch)
        return min(steps, training.max_steps or MAX_STEPS)

    def longest_sequence(self, site: SiteProfile) -> int:
        """Tokens of the site's longest sample; what `task.maxLength` allows when its profile does not contain that length."""
        most = longest_sample(self.spec.task)
        return min(most, site.longest_tokens or most)
