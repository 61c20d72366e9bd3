"""Where training stands, in one safetensors file: what a stopped attempt leaves and the next one goes on from.

Everything that the following steps depend on is in it, so an attempt that was stopped and one that was not end with
the same bytes.
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


class Position(BaseModel):
    """How far training is: steps, samples and tokens done, the loss of each step, and the micro-batch that fits memory."""

    model_config = ConfigDict(frozen=True)

    micro_batch: int
    step: int = 0
    samples: int = 0
    tokens: int = 0
    losses: tuple[float, ...] = ()

    def after(self, *, loss: float, samples: int, tokens: int, micro_batch: int) -> Self:
        """The position one step on."""
        return self.model_copy(
            update={
                "micro_batch": micro_batch,
                "step": self.step + 1,
                "samples": self.samples + samples,
                "tokens": self.tokens + tokens,
                "losses": (*self.losses, loss),
            }
        )


def save(path: Path, identity: str, position: Position, *, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Write a checkpoint.

    Args:
        path: the file.
        identity: says which task it belongs to; `restore` ignores a checkpoint of any other.
        position: how far training is.
        trained: the trained parameters by key.
        optimizer: AdamW over these parameters, its state allocated.
    """
    tensors: dict[str, Tensor] = {_RNG: torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[f"{_RNG}.cuda"] = torch.cuda.get_rng_state()
    for key, parameter in trained.items():
        tensors[f"value.{key}"] = parameter
        tensors |= {f"{moment}.{key}": optimizer.state[parameter][moment] for moment in _MOMENTS}
    write_tensors(tensors, path, {_META: position.model_dump_json(), "identity": identity})


def restore(path: Path, identity: str, *, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Position | None:
    """Read a checkpoint into the parameters, the optimizer and torch's generators; None if it is of another task.

    Raises:
        safetensors.SafetensorError: the file is no checkpoint.
    """
    with safe_open(path, framework="pt") as file, torch.no_grad():
        metadata = file.metadata()
        if metadata["identity"] != identity:
            return None
        for key, parameter in trained.items():
            parameter.copy_(file.get_tensor(f"value.{key}"))
            for moment in _MOMENTS:
                optimizer.state[parameter][moment].copy_(file.get_tensor(f"{moment}.{key}"))
        torch.set_rng_state(file.get_tensor(_RNG))
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(file.get_tensor(f"{_RNG}.cuda"))
        return Position.model_validate_json(metadata[_META])
