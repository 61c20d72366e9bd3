"""A toy fleet: plans, updates as peft saves them, and sources that record the reads."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from safetensors.numpy import save

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation import Candidate, RoundInput
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.contract import Artifact, Forecast, Measured, Outcome, Plan, RunRef, TrainResult

RUN = RunRef(namespace="default", name="demo", uid="0000")
HEAD = "base_model.model.classifier.weight"
FORECAST = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)


@dataclass
class RecordingSource:
    """Bytes in memory, with a count of the reads of each range and a log of them in order."""

    data: bytes
    reads: Counter[tuple[int, int]] = field(default_factory=Counter)
    log: list[tuple["RecordingSource", int, int]] = field(default_factory=list, repr=False, compare=False)

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        self.reads[offset, length] += 1
        self.log.append((self, offset, length))
        return self.data[offset : offset + length]


@dataclass(frozen=True)
class Fleet:
    """Makes the inputs of a round. A site's name seeds its values, so that a site is the same in every fleet."""

    weights: Mapping[str, tuple[int, int]]
    ranks: Mapping[str, Mapping[str, int]]
    samples: Mapping[str, int]
    """Training samples of each site."""
    head: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    round: int = 1
    needed: int = 1
    steps: Mapping[str, int] = field(default_factory=dict)
    """Of one sample each; a site that is not named takes one."""

    def plan(self) -> RoundPlan:
        plans = {
            site: Plan(
                bits=32, batch_size=1, steps=self.steps.get(site, 1), ranks={w: ranks.get(w, 0) for w in self.weights}, forecast=FORECAST
            )
            for site, ranks in self.ranks.items()
        }
        return RoundPlan(
            round=self.round,
            started_at=0.0,
            fingerprint="f" * 64,
            weights=dict(self.weights),
            head=dict(self.head),
            plans=plans,
            samples=dict(self.samples),
            selected=tuple(plans),
            evaluators=tuple(plans),
            needed=self.needed,
        )

    def tensors(self, site: str) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([*site.encode(), self.round])
        tensors = {key: rng.standard_normal(shape) for key, shape in self.head.items()}
        for weight, (d_out, d_in) in self.weights.items():
            if rank := self.ranks[site].get(weight, 0):
                tensors[f"base_model.model.{weight}.lora_A.weight"] = rng.standard_normal((rank, d_in))
                tensors[f"base_model.model.{weight}.lora_B.weight"] = rng.standard_normal((d_out, rank))
        return {key: np.ascontiguousarray(value, dtype=np.float32) for key, value in tensors.items()}

    def result(self, site: str, data: bytes) -> TrainResult:
        plan = self.plan().plans[site]
        return TrainResult(
            run=RUN,
            site=site,
            round=self.round,
            attempt=0,
            outcome=Outcome.COMPLETED,
            fingerprint="f" * 64,
            measured=Measured(),
            adapter=Artifact(name="adapter.safetensors", size=len(data), sha256=hashlib.sha256(data).hexdigest()),
            ranks=plan.ranks,
            scales={w: plan.scale(w) for w, r in plan.ranks.items() if r},
            steps=plan.steps,
            samples=plan.steps,
        )

    def candidate(self, site: str, tensors: Mapping[str, np.ndarray] | None = None) -> Candidate:
        data = save(dict(self.tensors(site) if tensors is None else tensors))
        return Candidate(result=AdmittedUpdate(self.result(site, data)), source=RecordingSource(data))

    def round_input(self, previous: bytes | None = None) -> RoundInput:
        candidates = {site: self.candidate(site) for site in self.ranks}
        return RoundInput(plan=self.plan(), candidates=candidates, previous=RecordingSource(previous) if previous else None)

    def next_round(self) -> "Fleet":
        return replace(self, round=self.round + 1)
