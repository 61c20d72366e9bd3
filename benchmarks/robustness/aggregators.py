"""The rules that are compared: ours through the operator's whole aggregation, Flower's through its own functions on equal ranks."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from flwr.server.strategy.aggregate import aggregate, aggregate_krum, aggregate_median, aggregate_trimmed_avg
from safetensors.numpy import load, save

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation import AggregationConfig, Candidate, RoundInput, aggregate_round
from fedpipe_operator.aggregation.tensors import factor_keys
from fedpipe_operator.api import Clipping
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan
from fedpipe_trainer.contract import Artifact, Forecast, Measured, Outcome, Plan, RunRef, TrainResult

RUN: Final = RunRef(namespace="benchmark", name="robustness", uid="0")
HEAD: Final = ("base_model.model.classifier.weight", "base_model.model.classifier.bias")
OURS: Final[Mapping[str, AggregationConfig]] = {
    "mean, no bounds": AggregationConfig(method="Exact", max_rank=32, max_site_weight=1.0, clipping=Clipping.NONE, max_norm=1e12),
    **{rule: AggregationConfig(method="Exact", max_rank=32, rule=rule) for rule in ("Mean", "Median", "TrimmedMean", "Krum", "MultiKrum")},
}
FLOWER: Final = ("FedAvg", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum")

Tensors = dict[str, np.ndarray]


@dataclass
class Harm:
    """What the rule cost honest sites, in updates of sites and rounds."""

    clipped: int = 0
    refused: int = 0
    left_out: int = 0
    updates: int = 0

    def as_dict(self) -> dict[str, int]:
        """As it is stored."""
        return {"clipped": self.clipped, "refused": self.refused, "leftOut": self.left_out, "honest": self.updates}


@dataclass
class Ours:
    """The operator's aggregation, round by round."""

    config: AggregationConfig
    weights: Mapping[str, tuple[int, int]]
    samples: Mapping[str, int]
    steps: Mapping[str, int]
    ranks: Mapping[str, int]
    """By site: of each weight."""
    harm: Harm = field(default_factory=Harm)
    _adapter: bytes | None = None
    _round: int = 0

    def plan(self) -> RoundPlan:
        """The same for every site but for steps and rank."""
        self._round += 1
        forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
        plans = {
            site: Plan(bits=32, batch_size=16, steps=steps, ranks=dict.fromkeys(self.weights, self.ranks[site]), forecast=forecast)
            for site, steps in self.steps.items()
        }
        return RoundPlan(
            round=self._round,
            started_at=0.0,
            fingerprint="f" * 64,
            weights=dict(self.weights),
            head={HEAD[0]: (20, 384), HEAD[1]: (20,)},
            plans=plans,
            samples=dict(self.samples),
            selected=tuple(plans),
            evaluators=tuple(plans),
            needed=1,
        )

    def __call__(self, updates: Mapping[str, Tensors], honest: Sequence[str]) -> Tensors:
        """The new global adapter from the tensors of every site."""
        plan, sink = self.plan(), io.BytesIO()
        candidates = {site: _candidate(site, tensors, plan) for site, tensors in updates.items()}
        previous = _Bytes(self._adapter) if self._adapter else None
        result = aggregate_round(RoundInput(plan, candidates, previous=previous), self.config, sink)
        if result.commit is None:
            raise SystemExit(f"the gate refused every update: {result.verdicts}")
        self._count(result.commit, honest)
        self._adapter = sink.getvalue()
        return load(self._adapter)

    def _count(self, commit: RoundCommit, honest: Sequence[str]) -> None:
        contributions = {one.site: one for one in commit.contributions}
        self.harm.updates += len(honest)
        self.harm.refused += sum(site not in contributions for site in honest)
        kept = [contributions[site] for site in honest if site in contributions]
        self.harm.clipped += sum(one.clipped > 0 for one in kept)
        self.harm.left_out += sum(one.share == 0 for one in kept)


def flower(rule: str, arrays: Sequence[list[np.ndarray]], samples: Sequence[int], malicious: int) -> list[np.ndarray]:
    """One of Flower's rules on the parameters, each an array: A and B apart."""
    results = list(zip(arrays, samples, strict=True))
    rules: dict[str, Callable[[], list[np.ndarray]]] = {
        "FedAvg": lambda: aggregate(results),
        "FedMedian": lambda: aggregate_median(results),
        "FedTrimmedAvg": lambda: aggregate_trimmed_avg(results, malicious / len(results)),
        "Krum": lambda: aggregate_krum(results, malicious, 0),
        "MultiKrum": lambda: aggregate_krum(results, malicious, len(results) - malicious - 2),
    }
    return rules[rule]()


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def _candidate(site: str, tensors: Tensors, plan: RoundPlan) -> Candidate:
    data, own = save({key: np.ascontiguousarray(tensor, np.float32) for key, tensor in tensors.items()}), plan.plans[site]
    result = TrainResult(
        run=RUN,
        site=site,
        round=plan.round,
        attempt=0,
        outcome=Outcome.COMPLETED,
        fingerprint="f" * 64,
        measured=Measured(),
        adapter=Artifact(name="adapter.safetensors", size=len(data), sha256=hashlib.sha256(data).hexdigest()),
        ranks=own.ranks,
        scales={weight: own.scale(weight) for weight in own.ranks},
        steps=own.steps,
        samples=own.steps * own.batch_size,
    )
    return Candidate(AdmittedUpdate(result), _Bytes(data))


def keys_of(weights: Sequence[str]) -> list[str]:
    """The keys of all tensors in the order in which a site's arrays are kept: A, B of each weight, then the head's."""
    return [key for weight in weights for key in factor_keys(weight)] + list(HEAD)
