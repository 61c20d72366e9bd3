"""What a trainer reports at the end of a task: an exit status and a result, whether the task succeeded or failed.

The result is the last object that a task writes; it names the task's artifacts by size and SHA-256.
"""

import math
from enum import IntEnum, StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from fedpipe_trainer.contract.base import SCHEMA_VERSION, Wire
from fedpipe_trainer.contract.codec import CodecName
from fedpipe_trainer.contract.plan import MAX_LAYERS, Bits, Scaling
from fedpipe_trainer.contract.task import (
    MAX_RANGE_TEST_SAMPLES,
    MAX_RATES,
    Basis,
    Commit,
    ExportFiles,
    ImportanceMethod,
    LearningRate,
    Processes,
    RunRef,
    Sha256,
)

# Keys of a JSON object are always strings.
_BitsKey = Annotated[Bits, BeforeValidator(lambda key: int(key) if isinstance(key, str) and key.isdecimal() else key)]
MAX_WEIGHTS: Final = 100_000
MAX_LABELS: Final = 10_000
MAX_POINTS: Final = 128
"""Measured steps of a profile. Honest ones have 24 at most: four bit widths, three batch sizes, two depths."""
LONGEST_LABEL: Final = 1024
MAX_REASON: Final = 4096
MAX_LOSS: Final = 1e6
"""A larger loss counts as diverged."""
MAX_TARGET: Final = MAX_LOSS**0.5
"""Size of the largest number of a regression, whose first loss is about the mean square of its numbers."""
_LARGEST_EXPONENT: Final = 700.0  # above this, exp overflows a double


class ExitCode(IntEnum):
    """The trainer's exit status. Codes 2 to 9 are final: another attempt at the same task would end in the same way."""

    OK = 0
    UNEXPECTED = 1
    BAD_TASK = 2
    BAD_DATA = 3
    BAD_MODEL = 4
    OUT_OF_MEMORY = 5
    DIVERGED = 6
    POLICY_DENIED = 7
    NO_ACCELERATOR = 8
    TRANSFER_FAILED = 10
    TERMINATED = 143

    @property
    def is_final(self) -> bool:
        """Whether another attempt is pointless, because the cause is the task's input and not a transient error."""
        return ExitCode.BAD_TASK <= self < ExitCode.TRANSFER_FAILED


class FailureReason(StrEnum):
    """Why a task failed, as one CamelCase word; the result's message gives the details."""

    UNEXPECTED = "Unexpected"
    BAD_TASK = "BadTask"
    BAD_DATA = "BadData"
    BAD_MODEL = "BadModel"
    OUT_OF_MEMORY = "OutOfMemory"
    DIVERGED = "Diverged"
    POLICY_DENIED = "PolicyDenied"
    NO_ACCELERATOR = "NoAccelerator"
    TRANSFER_FAILED = "TransferFailed"
    TERMINATED = "Terminated"

    @property
    def exit_code(self) -> ExitCode:
        """The exit status for this reason."""
        return ExitCode[self.name]


Count = Annotated[int, Field(ge=0, le=10**12)]
Size = Annotated[int, Field(ge=0, le=10**18)]
"""Bytes."""
Width = Annotated[int, Field(ge=1, le=10**8)]
Layer = Annotated[int, Field(ge=0, le=MAX_LAYERS)]
Tokens = Annotated[int, Field(ge=0, le=10**9)]
Seconds = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1e-9, le=1e30, allow_inf_nan=False)]
"""Of tokens, bits or bytes: so small a one still divides to a finite number."""
Loss = Annotated[float, Field(ge=0, le=MAX_LOSS, allow_inf_nan=False)]
"""A mean loss per target, in nats."""
MAX_SCORE: Final = 1e30
Score = Annotated[float, Field(ge=0, le=MAX_SCORE, allow_inf_nan=False)]


class TaskEnded(Wire):
    """The line that a serving trainer writes to standard output when a task has ended."""

    ended: str
    """The path of the task file, as it was given."""
    exit_code: int


class EnergySource(StrEnum):
    """The counter that energy is read from."""

    NVML = "NVML"
    """Of the NVIDIA GPUs that a task uses."""
    RAPL = "RAPL"
    """Of the processor packages, with whatever else runs on them."""


class Outcome(StrEnum):
    """Whether the task succeeded."""

    COMPLETED = "Completed"
    FAILED = "Failed"


class Failure(Wire):
    """Why a task failed: a reason, and a sentence that says what is wrong, where, and what to do."""

    reason: FailureReason
    message: Annotated[str, Field(max_length=MAX_REASON)]


class Artifact(Wire):
    """An object that the task wrote, under the name of its file."""

    name: str
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Measured(Wire):
    """The resources that the task used. They are compared with the plan's forecast."""

    device: Annotated[str, Field(max_length=253)] = "cpu"
    peak_memory_bytes: Size = 0
    seconds: Annotated[dict[Annotated[str, Field(max_length=32)], Seconds], Field(max_length=16)] = {}
    """Seconds by phase: load, train, evaluate, export, transfer. They add up to the duration of the task."""
    uploaded_bytes: Size = 0
    downloaded_bytes: Size = 0


class Sample(Wire):
    """One validation row that the run requested, with its prediction."""

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
    """Fingerprint of the base model, as computed at the site."""
    measured: Measured
    software: dict[str, str] = {}


ParameterName = Annotated[str, Field(min_length=1, max_length=1024)]
Shape = Annotated[tuple[Annotated[int, Field(ge=-1, le=10**12)], ...], Field(max_length=16)]


class WeightShape(Wire):
    """A weight that may get an adapter: y = W·x, where W is d_out × d_in."""

    name: ParameterName
    d_out: Width
    d_in: Width
    layer: Layer = 0
    """The layer that the weight belongs to, counted from the input; in an encoder-decoder the decoder follows the encoder."""


MAX_WHOLE_TENSORS: Final = 1000
"""Of the modules of the base that are trained whole."""


class BaseModelFacts(Wire):
    """Facts about the base model that the planner needs. Parameters are counted in elements, not bytes."""

    architecture: Annotated[str, Field(max_length=256)]
    parameters: Annotated[int, Field(ge=1, le=10**15)]
    quantised_parameters: Annotated[int, Field(ge=0, le=10**15)]
    """Parameters of the linear layers that are quantised at 4 or 8 bits; the others (embeddings, norms, head) stay at 16 bits."""
    layers: Layer
    hidden_size: Width
    intermediate_size: Width
    attention_heads: Width
    vocabulary_size: Width
    weights: Annotated[tuple[WeightShape, ...], Field(max_length=MAX_WEIGHTS)]
    head: Annotated[dict[ParameterName, Shape], Field(max_length=1000)] = {}
    """Tensors that are trained and sent in full (a classification head): shape by key of the adapter file.

    A dimension of -1 is the number of labels, which is known only after every site has been profiled.
    """
    whole: Annotated[dict[ParameterName, Shape], Field(max_length=MAX_WHOLE_TENSORS)] = {}
    """Tensors of modules of the base that are trained whole, of which the difference from the base is sent: shape by key of the adapter
    file."""
    whole_layer: Layer = 0
    """The lowest layer that is trained where these are: all layers from it on."""
    merged_bytes: Size = 0
    supports_gradient_checkpointing: bool = True
    """Whether transformers can recompute this architecture's activations in the backward pass."""
    encoder_decoder: bool = False
    """Whether it has two stacks of layers. Activations can be cached below a layer of one stack only."""
    materialised_attention: bool = False
    """Whether attention stores its scores, batch × heads × length² values (eager). Fused kernels (sdpa, flash) do not."""


class Throughput(Wire):
    """One measurement: training steps of `batch_size` × `length` tokens on a base at `bits` bits.

    The points of two depths tell the forward pass from the backward pass: seconds a token = a + c · trained layers.
    """

    bits: Bits
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    length: Annotated[int, Field(ge=1, le=10**9)]
    tokens_per_second: Rate
    """Tokens per second in training (forward pass, backward pass and optimiser step)."""
    evaluate_tokens_per_second: Rate
    """Tokens per second in a forward pass without gradients, measured with the smallest batch of this bit width."""
    peak_memory_bytes: Size
    """Peak memory of the process (CPU) or device (GPU) during these steps."""
    lowest_layer: Layer = 0
    """The lowest layer with adapters during these steps. 0: all layers were trained."""
    gradient_checkpointing: bool = False


class GenerationSpeed(Wire):
    """Seconds of generating answers greedily, token by token, with a cache of keys and values.

    n tokens for each of b prompts at once take b · prompt + (n − 1) · (token + b · sequence token) seconds.
    """

    prompt_seconds: Seconds
    """Of a prompt and the first token, for each prompt."""
    token_seconds: Seconds
    """Of a further token, however many prompts are answered at once."""
    sequence_token_seconds: Seconds
    """What each of these prompts adds to that."""


class Importance(Wire):
    """How important each weight is for the site's data, on two disjoint halves of the batches: they agree if the score is stable."""

    method: ImportanceMethod
    samples: Count
    """Samples in both halves together."""
    first_half: Annotated[dict[ParameterName, Score], Field(max_length=MAX_WEIGHTS)] = {}
    """Score by weight (dimensionless; only the ratios matter)."""
    second_half: Annotated[dict[ParameterName, Score], Field(max_length=MAX_WEIGHTS)] = {}
    problem: Annotated[str, Field(max_length=1024)] = ""
    """Why there are no scores, and what to do; empty if there are."""

    @model_validator(mode="after")
    def _require_both_halves_to_score_the_same_weights(self) -> Self:
        if self.first_half.keys() != self.second_half.keys():
            raise ValueError("firstHalf and secondHalf score different weights")
        return self


class RateLoss(Wire):
    """The validation loss after the steps of a range test at one learning rate."""

    learning_rate: LearningRate
    loss: Loss | None = None
    """None: training diverged at this rate."""


class RangeTestResult(Wire):
    """What a range test of learning rates measured at a site. Only these losses leave the site."""

    samples: Annotated[int, Field(ge=0, le=MAX_RANGE_TEST_SAMPLES)] = 0
    """Validation samples that the losses are of."""
    loss_before: Loss | None = None
    """The validation loss before any step; None if nothing was tried."""
    rates: Annotated[tuple[RateLoss, ...], Field(max_length=MAX_RATES)] = ()
    """The rates that were tried, ascending; those that were not are left out."""
    problem: Annotated[str, Field(max_length=1024)] = ""
    """Why there are no losses, and what to do; empty if there are."""

    @model_validator(mode="after")
    def _require_each_rate_once_and_a_loss_to_compare_with(self) -> Self:
        tried = [rate.learning_rate for rate in self.rates]
        if sorted(set(tried)) != tried:
            raise ValueError("rates are not ascending, or one of them is there twice")
        if tried and self.loss_before is None:
            raise ValueError("there are rates but no lossBefore to compare them with")
        return self


class ProfileResult(_ResultBase):
    """The measurements at a site."""

    kind: Literal["profile"] = "profile"
    basis: Basis | None = None
    """That of the task; None: an earlier version made the profile."""
    base: BaseModelFacts | None = None
    model_revision: Commit | None = None
    """The commit that the model's branch or tag named at the hub; None for a model that does not come from a hub."""
    labels: Annotated[tuple[Annotated[str, Field(max_length=LONGEST_LABEL)], ...], Field(max_length=MAX_LABELS)] = ()
    train_samples: Count = 0
    validation_samples: Count = 0
    skipped_rows: Count = 0
    train_labels: Count = 0
    """Different labels that the training rows have; 0: no classification, or not recorded."""
    validation_labels: Count = 0
    """Likewise of the validation rows."""
    mean_tokens: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    """Mean number of tokens of a training sample, truncated to maxLength."""
    longest_tokens: Tokens = 0
    """Number of tokens of the longest training sample. 0: not recorded, so the planner has to assume maxLength."""
    rank: Annotated[int, Field(ge=0, le=1024)] = 8
    """Rank of every adapter while `throughput` was measured."""
    processes: Processes = 1
    """Among which its steps were divided, each with a device of its own: batches, memory and peaks are those of one of them, and the speeds
    of training those of all together."""
    memory_bytes: Size = 0
    """Memory that the process may use: that of the device, or the smaller of the machine's and the cgroup's."""
    device_memory_bytes: Size = 0
    """The same if the site claimed more than it does: the claim is no part of it. 0: not recorded."""
    runtime_bytes: Size = 0
    """Memory of the process before a model is loaded (interpreter, libraries, device context)."""
    setup_seconds: Seconds = 0.0
    """Seconds of a task before it loads the base: importing libraries, reading the data and the model's configuration. A download, or the
    hash of a local model, is part of it only where no cache keeps it for the next task."""
    load_peak_bytes: dict[_BitsKey, Size] = {}
    """Peak memory while the base is loaded, by bits."""
    base_bytes: dict[_BitsKey, Size] = {}
    """Memory of the loaded base, by bits."""
    load_seconds: dict[_BitsKey, Seconds] = {}
    throughput: Annotated[tuple[Throughput, ...], Field(max_length=MAX_POINTS)] = ()
    unsupported: dict[_BitsKey, Annotated[str, Field(max_length=MAX_REASON)]] = {}
    """Bit widths that this device does not support, with the reason."""
    out_of_memory: dict[_BitsKey, Size] = {}
    """Bit widths for which memory did not suffice, with a number of bytes that is known to be too few.

    That is what the process could use, or what it would take with the base loaded if that is more.
    """
    first_step_seconds: dict[_BitsKey, Seconds] = {}
    """Seconds by which the first training step exceeds a later one (kernels are compiled or loaded, memory is allocated), by bits."""
    generation: dict[_BitsKey, GenerationSpeed] = {}
    """Speed of generating answers, by bits. Empty for a classification, whose evaluation generates none."""
    up_bits_per_second: Rate | None = None
    """Bandwidth of an upload to the store, measured with a real transfer; None: not measured."""
    down_bits_per_second: Rate | None = None
    cache_problem: Annotated[str, Field(max_length=MAX_REASON)] = ""
    """Why the site's cache cannot keep activations, and what to do; empty if it can, or the site has no cache."""
    memory_bytes_per_second: Rate | None = None
    """Bandwidth of the device's memory, measured by copying: bytes read and bytes written."""
    mfu: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None = None
    """Model FLOPs utilisation of the fastest training step that was measured."""
    tokens_per_joule: Rate | None = None
    """Energy efficiency of the fastest training step. None: the platform reports no energy (neither NVML nor RAPL)."""
    energy_source: EnergySource | None = None
    """What counted the energy. None: nothing did, or it was not recorded."""
    importance: Importance | None = None
    """None: not requested."""
    range_test: RangeTestResult | None = None
    """None: not requested."""


class TrainResult(_ResultBase):
    """The result that belongs to a site's update."""

    kind: Literal["train"] = "train"
    adapter: Artifact | None = None
    tensors: dict[str, tuple[int, ...]] = {}
    """Shape by key of the adapter file."""
    ranks: dict[str, int] = {}
    scaling: Scaling = Scaling.RSLORA
    scales: dict[str, float] = {}
    bits: Bits | None = None
    batch_size: Count = 0
    micro_batch_size: Count = 0
    """Smaller than `batch_size` if memory ran out and steps were split into micro-batches."""
    steps: Count = 0
    resumed_from_step: Count = 0
    samples: Count = 0
    """Samples that were actually trained on in this round: the site's weight in the aggregation."""
    tokens: Annotated[int, Field(ge=0, le=10**15)] = 0
    padded_tokens: Annotated[int, Field(ge=0, le=10**15)] = 0
    """Tokens of padding that were computed beside `tokens`: the padded share of a step is padded / (tokens + padded)."""
    cache_hits: Count = 0
    """Forward passes that read the lower layers' output from the site's cache; 0 unless the plan caches activations."""
    cache_misses: Count = 0
    """Forward passes that computed that output although the plan caches activations: first passes over a batch, or a faulty cache."""
    cache_held: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    """The share of the micro-batches of this training whose output the cache holds after it: less than 1 if it has no room for all."""
    cache_problem: Annotated[str, Field(max_length=MAX_REASON)] = ""
    """Why the cache did not work although the plan caches activations, and what to do; empty if it did, or was not to be used."""
    skipped_rows: Count = 0
    dropped_rows: Count = 0
    """Training rows that were left out because the run does not have their label (`SequenceClassification.drops_other_labels`)."""
    losses: Annotated[tuple[float, ...], Field(max_length=10**6)] = ()
    """Training loss of each step."""
    train_loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    """Model FLOPs utilisation: the share of the device's peak FLOP/s that the tokens used; padding does not count."""
    energy_joules: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] | None = None
    """Energy of the device during the training's steps. None: the platform reports none (neither NVML nor RAPL), or it was not recorded."""
    energy_source: EnergySource | None = None
    """What counted it. None: nothing did, or it was not recorded."""
    codecs: Annotated[dict[CodecName, Count], Field(max_length=16)] | None = None
    """Tensors of the update by the codec that they travel with; None without a codec. Of another than the task's, that lost too much."""
    update_cosine: float | None = None
    """Cosine between the increment that was trained and what is decoded of it, over all tensors; None without a codec."""
    update_relative_error: float | None = None
    """Likewise ‖decoded − increment‖ / ‖increment‖."""


class EvaluateResult(_ResultBase):
    """The evaluation of an adapter on one site's validation data: by an evaluation task, or by a training before its first step."""

    kind: Literal["evaluate"] = "evaluate"
    batch_size: Count = 0
    """Samples per batch. Smaller than the task's batch size if memory ran out or there are fewer samples."""
    samples: Count = 0
    targets: Count = 0
    """Number of tokens (or labels) over which `loss` is a mean: the weight of `loss` in the aggregated metrics."""
    skipped_rows: Count = 0
    dropped_rows: Count = 0
    """Validation rows that were left out likewise."""
    loss: float | None = None
    metrics: Annotated[dict[Annotated[str, Field(max_length=64)], float], Field(max_length=64)] = {}
    """accuracy and macroF1, or perplexity, bleu, rougeL and slotErrorRate."""
    examples: tuple[Sample, ...] = ()


class DryExportResult(_ResultBase):
    """What an export will write, tried on the untouched base."""

    kind: Literal["dry-export"] = "dry-export"
    adapter: ExportFiles = ()
    merged: ExportFiles = ()
    scratch_bytes: Size = 0
    """Disk that the export needs at a time."""


class ExportResult(_ResultBase):
    """The exported files, and the difference between the merged model and base + adapter."""

    kind: Literal["export"] = "export"
    adapter: tuple[Artifact, ...] = ()
    merged: tuple[Artifact, ...] = ()
    max_logit_difference: float | None = None
    """Largest |merged − (base + adapter)| over the logits of a fixed random input, both computed in 32 bits."""


Result = Annotated[ProfileResult | TrainResult | EvaluateResult | DryExportResult | ExportResult, Field(discriminator="kind")]

_RESULT: TypeAdapter[ProfileResult | TrainResult | EvaluateResult | DryExportResult | ExportResult] = TypeAdapter(Result)


def parse_result(text: str) -> ProfileResult | TrainResult | EvaluateResult | DryExportResult | ExportResult:
    """Read a result from JSON.

    Raises:
        ValueError: the text is not JSON or does not fit the schema (the message says where).
    """
    return _RESULT.validate_json(text)


def perplexity_of(loss: float) -> float:
    """The exponential of a mean loss per token (in nats); finite for every finite loss."""
    return math.exp(min(loss, _LARGEST_EXPONENT))
