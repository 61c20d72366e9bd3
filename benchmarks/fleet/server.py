"""The server of a run: the operator's own aggregation over adapter files in memory, and the rivals' rules that the operator lacks."""

import io
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import safetensors.torch
from configuration import Problem, Server
from task import Task
from torch import Tensor
from training import ALPHA, scale

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation.accepted import AcceptedUpdate, RoundContext
from fedpipe_operator.aggregation.config import AggregationConfig
from fedpipe_operator.aggregation.global_adapter import aggregate_adapters
from fedpipe_operator.aggregation.normalization import NORMALIZATIONS, Combination, LocalWork, Normalization, power_of_steps
from fedpipe_operator.aggregation.survey import limits_of
from fedpipe_operator.aggregation.tensors import open_tensors
from fedpipe_operator.api.aggregation import Clipping
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.adapters import AdapterTensors, read_global_adapter
from fedpipe_trainer.contract import Measured, Outcome, Plan, RunRef, TrainResult
from fedpipe_trainer.contract.plan import Forecast


@dataclass(frozen=True)
class BytesSource:
    """An adapter file in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset` on."""
        return self.data[offset : offset + length]


@dataclass(frozen=True)
class Update:
    """What a site sends: its adapter file, and how it was trained."""

    data: bytes
    ranks: dict[str, int]
    steps: int
    data_samples: int


def adapter_file(tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of an adapter file."""
    return safetensors.torch.save({key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)})


def parse_adapter(task: Task, data: bytes | None) -> AdapterTensors:
    """The tensors of a global adapter; empty before the first round."""
    if data is None:
        return AdapterTensors()
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        return read_global_adapter(Path(file.name), task.base.model, task.base.head)


def start_of(ranks: Mapping[str, int], server: Server, adapter: AdapterTensors) -> AdapterTensors:
    """What a site starts from: the whole global adapter, or its first components where the method has no frozen residual.

    In FLoRA, the global update is in the base already (see `merged`), and every round trains a new adapter.
    """
    if server.method == "FLoRA":
        return AdapterTensors(head=adapter.head)
    if server.frozen_residual:
        return adapter
    kept = {name: factors.components(0, ranks[name]) for name, factors in adapter.weights.items() if ranks.get(name)}
    return AdapterTensors(kept, adapter.head)


def bytes_down(server: Server, first: AdapterTensors, adapter: bytes | None) -> int:
    """Bytes that a site receives which starts from `first`: no more than that, where the method needs no frozen residual."""
    if server.frozen_residual or server.method == "FLoRA":
        return len(adapter or b"")
    tensors = [tensor for factors in first.weights.values() for tensor in (factors.a, factors.b)]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *first.head.values()))


@contextmanager
def merged(task: Task, deltas: Mapping[str, Tensor]) -> Iterator[None]:
    """The base with these updates (d_out × d_in) added to its weights, in the weights' own precision."""
    weights = {name: task.base.model.get_submodule(name).get_parameter("weight") for name in deltas}
    originals = {name: weight.data for name, weight in weights.items()}
    for name, weight in weights.items():
        weight.data = (originals[name].float() + deltas[name]).to(weight.dtype)
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.data = originals[name]


def aggregate(
    task: Task, problem: Problem, server: Server, updates: Mapping[str, Update], previous: bytes | None
) -> tuple[bytes, dict[str, float]]:
    """The new global adapter's file, and how much each weight changed.

    FlexLoRA (arXiv 2402.11505) averages products, so it has no use for the previous adapter: with none, `Exact` is that average. FLoRA
    (arXiv 2409.05976) stacks the sites' products, which is the same sum without truncation.
    HetLoRA (arXiv 2401.06432) averages zero-padded factors, weighted by the norms of the sites' products; its pruning is left out.
    """
    method = {"FlexLoRA": "Exact", "FLoRA": "Exact", "HetLoRA": "ZeroPad"}.get(server.method, server.method)
    normalization = _by_norm(updates) if server.method == "HetLoRA" else _normalization(server.normalization)
    config = AggregationConfig(method=method, max_rank=server.max_rank, normalization=normalization)
    if server.method != "Exact":  # the rivals' rules have no bounds
        config = replace(config, clipping=Clipping.NONE, max_site_weight=1.0)
    accepted = {
        site: AcceptedUpdate(_result(site, update, problem), open_tensors(BytesSource(update.data))) for site, update in updates.items()
    }
    start = open_tensors(BytesSource(previous)) if previous and server.frozen_residual else None
    sink = io.BytesIO()
    context = RoundContext(_round_plan(task, problem, updates), config, start)
    adapter = aggregate_adapters(context, accepted, limits_of(context, accepted), sink)
    return sink.getvalue(), adapter.learned


def _normalization(name: str) -> Normalization:
    """The operator's of this name, or one that it lacks: `FedNova` as published, a power of the steps, and others."""
    if name == "FedNova":
        return partial(power_of_steps, exponent=1.0)
    if name == "shares of EffectiveSteps":
        return partial(power_of_steps, exponent=1.0, max_server_rate=1.0)
    if name.startswith("steps^"):
        return partial(power_of_steps, exponent=float(name.removeprefix("steps^")))
    return by_trained_samples if name == "TrainedSamples" else NORMALIZATIONS[name]


def by_trained_samples(work: Sequence[LocalWork]) -> Combination:
    """The weights by the samples of the round's steps, for comparison: more steps count twice, in the increment and in its weight."""
    total = sum(site.effective_steps for site in work)
    return Combination(tuple(site.effective_steps / total for site in work), paces=(1.0,) * len(work))


def _by_norm(updates: Mapping[str, Update]) -> Normalization:
    """HetLoRA's weights: p_k ∝ ‖B_k A_k‖_F over all weights. Every site trains every weight, so the sites are always the same."""
    norms = [_product_norm(updates[site]) for site in sorted(updates)]
    weights = Combination(tuple(norm / sum(norms) for norm in norms), paces=(1.0,) * len(norms))
    return lambda _work: weights


def _product_norm(update: Update) -> float:
    """Of the scaled products: scales differ with the ranks."""
    tensors = safetensors.torch.load(update.data)
    factors = [(tensor, tensors[key.replace("lora_A", "lora_B")]) for key, tensor in tensors.items() if "lora_A" in key]
    return math.sqrt(sum(float(((scale(len(a)) * b @ a) ** 2).sum()) for a, b in factors))


_RUN = RunRef(namespace="benchmark", name="fleet", uid="fleet")


def _result(site: str, update: Update, problem: Problem) -> AdmittedUpdate:
    result = TrainResult(
        run=_RUN,
        site=site,
        round=1,
        attempt=0,
        outcome=Outcome.COMPLETED,
        measured=Measured(),
        ranks=update.ranks,
        scales={weight: scale(rank) for weight, rank in update.ranks.items()},
        steps=update.steps,
        samples=update.steps * problem.batch_size,
    )
    return AdmittedUpdate(result)


def _round_plan(task: Task, problem: Problem, updates: Mapping[str, Update]) -> RoundPlan:
    head = {f"base_model.model.{name}": tuple(task.base.model.get_parameter(name).shape) for name in task.base.head}
    return RoundPlan(
        round=1,
        started_at=0.0,
        fingerprint=task.base.fingerprint,
        weights={weight.name: (weight.d_out, weight.d_in) for weight in task.weights},
        head=head,
        plans={site: _plan(update, problem) for site, update in updates.items()},
        samples={site: update.data_samples for site, update in updates.items()},
        selected=tuple(updates),
        evaluators=(),
        needed=1,
    )


def _plan(update: Update, problem: Problem) -> Plan:
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=len(update.data), download_bytes=0)
    return Plan(bits=16, batch_size=problem.batch_size, steps=update.steps, ranks=update.ranks, alpha=ALPHA, forecast=forecast)
