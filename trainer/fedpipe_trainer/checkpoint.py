"""Checkpoints of training: one safetensors file that a stopped attempt writes and the next attempt resumes from.

It holds everything that the remaining steps depend on, so an attempt that was stopped and resumed ends with the same
bytes as one that was not stopped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from torch import Tensor, nn

from fedpipe_trainer.adapters import write_tensors

_META = "fedpipe"
_RNG = "rng"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class TrainingState(BaseModel):
    """The state of the training loop: counts so far, the loss of each step, and the micro-batch that fits in memory."""

    model_config = ConfigDict(frozen=True)

    micro_batch: int
    step: int = 0
    samples: int = 0
    tokens: int = 0
    padding: int = 0
    losses: tuple[float, ...] = ()

    def after(self, *, loss: float, samples: int, tokens: int, padding: int, micro_batch: int) -> Self:
        """The state after one more step."""
        return self.model_copy(
            update={
                "micro_batch": micro_batch,
                "step": self.step + 1,
                "samples": self.samples + samples,
                "tokens": self.tokens + tokens,
                "padding": self.padding + padding,
                "losses": (*self.losses, loss),
            }
        )

    def with_mean_losses(self) -> Self:
        """The state with the mean of the losses in place of each: their mean stays the same, and no step's loss is told."""
        return self.model_copy(update={"losses": (sum(self.losses) / len(self.losses),) * len(self.losses)}) if self.losses else self


def save(
    path: Path, identity: str, state: TrainingState, *, trainable: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint.

    Args:
        path: the file.
        identity: identifies the task; `restore` ignores a checkpoint of another task.
        state: the state of the training loop.
        trainable: the trainable parameters by key.
        optimizer: AdamW over these parameters, with its state allocated.
    """
    tensors: dict[str, Tensor] = {_RNG: torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[f"{_RNG}.cuda"] = torch.cuda.get_rng_state()
    for key, parameter in trainable.items():
        tensors[f"value.{key}"] = parameter
        tensors |= {f"{moment}.{key}": optimizer.state[parameter][moment] for moment in _MOMENTS}
    write_tensors(tensors, path, {_META: state.model_dump_json(), "identity": identity})


def restore(path: Path, identity: str, *, trainable: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> TrainingState | None:
    """Restore the parameters, the optimizer and torch's random generators from a checkpoint; None if it belongs to another task.

    Raises:
        safetensors.SafetensorError: the file is not a checkpoint.
    """
    with safe_open(path, framework="pt") as file, torch.no_grad():
        metadata = file.metadata()
        if metadata["identity"] != identity:
            return None
        for key, parameter in trainable.items():
            parameter.copy_(file.get_tensor(f"value.{key}"))
            for moment in _MOMENTS:
                optimizer.state[parameter][moment].copy_(file.get_tensor(f"{moment}.{key}"))
        torch.set_rng_state(file.get_tensor(_RNG))
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(file.get_tensor(f"{_RNG}.cuda"))
        return TrainingState.model_validate_json(metadata[_META])
