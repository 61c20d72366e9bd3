"""A result: what a trainer reports when it ends, well or not. It is written last and names its artifacts by hash."""

import math
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, TypeAdapter

from fedpipe_trainer.contract.base import SCHEMA_VERSION, Wire
from fedpipe_trainer.contract.exits import FailureReason
from fedpipe_trainer.contract.plan import Bits, Scaling
from fedpipe_trainer.contract.task import RunRef, Sha256

# JSON knows text alone as the key of an object.
_BitsKey = Annotated[Bits, BeforeValidator(lambda key: int(key) if isinstance(key, str) and key.isdecimal() else key)]
_LARGEST_EXPONENT: Final = 700.0  # exp of more is no double


class Outcome(StrEnum):
    """How the task ended."""

    COMPLETED = "Completed"
    FAILED = "Failed"


class Failure(Wire):
    """Why a task failed: one word, and a sentence that says what is wrong, where, and what to do."""

    reason: FailureReason
    message: Annotated[str, Field(max_length=4096)]


class Artifact(Wire):
    """An object this result vouches for, by the name of its file."""

    name: str
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Measured(Wire):
    """What the task cost. Compared with the plan's forecast."""

    device: str = "cpu"
    peak_memory_bytes: Annotated[int, Field(ge=0)] = 0
    seconds: dict[str, float] = {}
    """Seconds by phase: load, train, evaluate, export, transfer; they add up to the task's own time."""
    uploaded_bytes: Annotated[int, Field(ge=0)] = 0
    downloaded_bytes: Annotated[int, Field(ge=0)] = 0


class Sample(Wire):
    """One validation row that the run asked to see."""

    text: str
    expected: str
    predicted: str


class _ResultBase(Wire):
    schema_version: Literal[1] = SCHEMA_VERSION
    run: RunRef
    site: str
    round: int
    attempt: int
    outcome: Outcome
    failure: Failure | None = None
    fingerprint: Sha256 | None = None
    """The base model's, as read at the site."""
    measured: Measured
    software: dict[str, str] = {}


class WeightShape(Wire):
    """A weight that may get an adapter: y = W·x with W of d_out × d_in."""

    name: str
    d_out: Annotated[int, Field(ge=1)]
    d_in: Annotated[int, Field(ge=1)]


class BaseModelFacts(Wire):
    """What the planner must know of the base. Counts are of elements, not bytes."""

    architecture: str
    parameters: Annotated[int, Field(ge=1)]
    quantised_parameters: Annotated[int, Field(ge=0)]
    """Those of linear layers that a 4- or 8-bit load shrinks; the rest (embeddings, norms, head) stays at 16 bits."""
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    vocabulary_size: int
    weights: tuple[WeightShape, ...]
    head: dict[str, tuple[int, ...]] = {}
    """Tensors trained and sent whole (a classification head): shape by key of the adapter file.

    A dimension of -1 stands for the number of labels, which is not fixed before every site is profiled.
    """
    merged_bytes: Annotated[int, Field(ge=0)] = 0
    materialised_attention: bool = False
    """Whether attention keeps its batch × heads × length² scores (eager); fused kernels (sdpa, flash) do not."""


class Throughput(Wire):
    """One measured point: training steps of `batch_size` × `length` tokens on a base of `bits`."""

    bits: Bits
    batch_size: int
    length: int
    tokens_per_second: float
    """Tokens trained per second (forward, backward and optimiser step)."""
    evaluate_tokens_per_second: float
    peak_memory_bytes: int
    """Peak of the process (CPU) or device (GPU) while these steps ran."""


class ProfileResult(_ResultBase):
    """What was measured at a site."""

    kind: Literal["profile"] = "profile"
    base: BaseModelFacts | None = None
    labels: tuple[str, ...] = ()
    train_samples: int = 0
    validation_samples: int = 0
    skipped_rows: int = 0
    mean_tokens: float = 0.0
    """Mean tokens of a training sample after cutting at maxLength."""
    longest_tokens: int = 0
    """Those of the longest training sample; 0: not recorded, so that maxLength must be planned for."""
    rank: int = 8
    """Rank of every weight's adapter while `throughput` was measured."""
    memory_bytes: int = 0
    """What the process may use: the device's memory, or the smaller of the machine's and the cgroup's."""
    runtime_bytes: int = 0
    """Memory of the process before any model is loaded (interpreter, libraries, device context)."""
    load_peak_bytes: dict[_BitsKey, int] = {}
    """Peak memory while the base is loaded, by bits."""
    base_bytes: dict[_BitsKey, int] = {}
    """Memory the loaded base holds, by bits."""
    load_seconds: dict[_BitsKey, float] = {}
    throughput: tuple[Throughput, ...] = ()
    unsupported: dict[_BitsKey, str] = {}
    """Bit widths that this device cannot do, and why."""


class TrainResult(_ResultBase):
    """What a site sends back beside its adapter."""

    kind: Literal["train"] = "train"
    adapter: Artifact | None = None
    tensors: dict[str, tuple[int, ...]] = {}
    """Shape by key of the adapter file."""
    ranks: dict[str, int] = {}
    scaling: Scaling = Scaling.RSLORA
    scales: dict[str, float] = {}
    bits: Bits | None = None
    batch_size: int = 0
    micro_batch_size: int = 0
    """Smaller than `batch_size` when memory ran out and the step was split."""
    steps: int = 0
    resumed_from_step: int = 0
    samples: int = 0
    """Samples really trained on in this round: the site's weight in the average."""
    tokens: int = 0
    skipped_rows: int = 0
    losses: tuple[float, ...] = ()
    """Training loss by step."""
    train_loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    """Share of the device's peak FLOP/s that useful work reached (4·N FLOP a token for a frozen base)."""


class EvaluateResult(_ResultBase):
    """An adapter's quality on one site's validation data."""

    kind: Literal["evaluate"] = "evaluate"
    batch_size: int = 0
    """Samples that went through the model at once; fewer than the task's when memory ran out or there are not so many."""
    samples: int = 0
    targets: int = 0
    """Tokens (or labels) that the loss is a mean over: the weight of `loss` in a union."""
    skipped_rows: int = 0
    loss: float | None = None
    metrics: dict[str, float] = {}
    """accuracy and macroF1; perplexity, bleu, rougeL, slotErrorRate."""
    examples: tuple[Sample, ...] = ()


class ExportResult(_ResultBase):
    """What was exported, and how far the merged model is from base + adapter."""

    kind: Literal["export"] = "export"
    adapter: tuple[Artifact, ...] = ()
    merged: tuple[Artifact, ...] = ()
    max_logit_difference: float | None = None
    """Largest |merged − (base + adapter)| of any logit on a fixed random input, both in 32 bits."""


Manifest = Annotated[ProfileResult | TrainResult | EvaluateResult | ExportResult, Field(discriminator="kind")]

_RESULT: TypeAdapter[ProfileResult | TrainResult | EvaluateResult | ExportResult] = TypeAdapter(Manifest)


def parse_result(text: str) -> ProfileResult | TrainResult | EvaluateResult | ExportResult:
    """Read a result from JSON.

    Raises:
        ValueError: the text is not JSON or does not fit the schema (the message says where).
    """
    return _RESULT.validate_json(text)


def perplexity_of(loss: float) -> float:
    """The exponential of a mean loss per token (nats); finite for every finite loss."""
    return math.exp(min(loss, _LARGEST_EXPONENT))
