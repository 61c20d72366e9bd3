"""The plan for one site: which weights get an adapter and the rank of each, the base's bit width, and how its steps are computed."""

from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from fedpipe_trainer.contract.base import Wire

Bits = Literal[4, 8, 16, 32]
MAX_LAYERS: Final = 10000
MAX_STEPS: Final = 10**6


class Scaling(StrEnum):
    """How the scale of an adapter's product B·A follows from alpha and the rank."""

    CLASSIC = "Classic"
    """alpha / r (Hu et al., arXiv 2106.09685)."""
    RSLORA = "RsLoRA"
    """alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732)."""


def scale_of(scaling: Scaling, alpha: float, rank: int) -> float:
    """The factor that multiplies B·A for an adapter of this rank (dimensionless; 0 for rank 0)."""
    if rank == 0:
        return 0.0
    return alpha / rank if scaling is Scaling.CLASSIC else alpha / float(rank) ** 0.5


def halved(micro_batch: int, times: int = 1) -> int:
    """The samples of a pass after memory ran out so many times: half as many each time, rounded up, so never less than one."""
    for _ in range(times):
        micro_batch = (micro_batch + 1) // 2
    return micro_batch


class Forecast(Wire):
    """The resources that a task is predicted to need. They are compared with those that its result measured."""

    memory_bytes: Annotated[int, Field(ge=0)]
    """Peak memory of the trainer's process (CPU) or of its device (GPU)."""
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """From the task's start to its result, transfers included."""
    step_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Of them, those of the training steps."""
    cached_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the passes that are expected to read the lower layers' output from the site's cache."""
    upload_bytes: Annotated[int, Field(ge=0)]
    download_bytes: Annotated[int, Field(ge=0)]


class Plan(Wire):
    """The plan for one site. `ranks` names every target weight; rank 0 means that the weight gets no adapter."""

    bits: Bits
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    """Samples per optimiser step."""
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Samples per forward and backward pass; their gradients are accumulated to a step. None: the whole batch at once."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    """Optimiser steps per round: an upper bound, since the deadline can end training earlier."""
    ranks: dict[str, Annotated[int, Field(ge=0, le=1024)]]
    """Rank by weight. A weight is named by its module path in the base model."""
    layers: Annotated[int, Field(ge=0, le=MAX_LAYERS)] = 0
    """Layers of the base; 0: not known."""
    lowest_layer: Annotated[int, Field(ge=0, le=MAX_LAYERS)] = 0
    """The lowest layer that is trained, counted from the input: no weight below it has a rank, so no backward pass reaches there."""
    gradient_checkpointing: bool = False
    """Whether the backward pass recomputes the activations of each layer instead of keeping them."""
    cache_activations: bool = False
    """Whether the inputs of `lowest_layer` are computed once for each batch and then read from the site's cache."""
    scaling: Scaling = Scaling.RSLORA
    alpha: Annotated[float, Field(gt=0)] = 16.0
    forecast: Forecast
    limited_by: Annotated[str, Field(max_length=32)] = ""
    """The constraint that binds: `Memory`, `Time`, `Bandwidth`, `Data` or `Spec`; empty if it is not known."""
    why: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    """The reasons for this plan, one sentence each."""

    @model_validator(mode="after")
    def _require_micro_batches_within_the_batch(self) -> Self:
        if self.micro_batch > self.batch_size:
            raise ValueError(f"microBatchSize {self.micro_batch} is larger than batchSize {self.batch_size}")
        return self

    @property
    def trained_layers(self) -> int:
        """The number of layers from the lowest trained one on."""
        return max(0, self.layers - self.lowest_layer)

    @property
    def micro_batch(self) -> int:
        """Samples per forward and backward pass."""
        return self.micro_batch_size or self.batch_size

    def scale(self, weight: str) -> float:
        """The factor that multiplies B·A of this weight's adapter."""
        return scale_of(self.scaling, self.alpha, self.ranks[weight])
