"""Exports the global adapter as a plain PEFT folder that `PeftModel.from_pretrained(base, folder)` reads without FedPipe.

Ranks differ by weight, but many programs that load adapters do not support rank patterns. Therefore every weight is
padded with zeros to the largest rank; alpha = rank makes the scale 1.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from fedpipe_trainer.adapters.lora import lora_config
from fedpipe_trainer.adapters.wire import AdapterTensors, Factors, lora_a_key, lora_b_key, parameter_key, write_tensors
from fedpipe_trainer.contract import FailureReason, Objective
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import linear_shape

_TASK_TYPES: Final = {"CausalLM": "CAUSAL_LM", "Preference": "CAUSAL_LM", "Seq2SeqLM": "SEQ_2_SEQ_LM", "SequenceClassification": "SEQ_CLS"}
_HUB: Final = re.compile(r"^hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>.+))?$")


class BaseName(NamedTuple):
    """How programs that load adapters name a base."""

    name: str
    revision: str | None = None


def base_name(source: str, commit: str | None) -> BaseName:
    """The hub's name and revision of a base, or its source where it is on no hub; a folder by its path.

    Args:
        source: as the run names it.
        commit: the hub's commit that the run used, if it is known: a branch or tag may move.
    """
    match = _HUB.match(source)
    if match is None:
        return BaseName(source.removeprefix("file://"))
    return BaseName(match["repository"], commit or match["revision"])


def write_peft_folder(  # noqa: PLR0913 -- what the folder describes
    model: PreTrainedModel, saved: tuple[str, ...], adapter: AdapterTensors, objective: Objective, *, base: BaseName, folder: Path
) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        model: the base model of the adapter; it may be on the meta device.
        saved: the modules that the adapter brings whole.
        adapter: the global adapter.
        objective: determines the task type.
        base: what adapter_config.json says of the base model.
        folder: the folder to write to; it exists.

    Raises:
        TaskFailed: BadTask, the global adapter has no weights.
    """
    if not adapter.weights:
        raise TaskFailed(FailureReason.BAD_TASK, "there is no LoRA adapter to export: the global adapter has no weight with a rank above 0")
    rank = max(factors.rank for factors in adapter.weights.values())
    config = lora_config(
        model,
        dict.fromkeys(adapter.weights, rank),
        r=rank,
        lora_alpha=rank,
        task_type=_TASK_TYPES[objective.type],
        modules_to_save=list(saved) or None,
        base_model_name_or_path=base.name,
        revision=base.revision,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {parameter_key(name): tensor for name, tensor in adapter.head.items()}
    for weight, factors in adapter.weights.items():
        padded = _pad_rank(factors, rank)
        tensors |= {lora_a_key(weight): padded.a, lora_b_key(weight): padded.b}
    write_tensors(tensors, folder / "adapter_model.safetensors")


def zero_adapter(model: PreTrainedModel, head: tuple[str, ...], ranks: Mapping[str, int]) -> AdapterTensors:
    """An adapter of these ranks that changes nothing, with a head of zeros; for a model on the meta device, too.

    Raises:
        TaskFailed: BadTask, a rank is given for something that is not a linear layer of the model.
    """
    modules, weights = dict(model.named_modules()), {}
    for weight, rank in sorted(ranks.items()):
        shape = linear_shape(modules[weight]) if weight in modules else None
        if shape is None:
            raise TaskFailed(FailureReason.BAD_TASK, f"{weight!r} is to get an adapter, but this model has no linear layer of that name")
        weights[weight] = Factors(torch.zeros(rank, shape[1]), torch.zeros(shape[0], rank))
    parameters = dict(model.named_parameters())
    return AdapterTensors(weights, {name: torch.zeros(parameters[name].shape) for name in head})


def _pad_rank(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.rank
    return Factors(torch.nn.functional.pad(factors.a, (0, 0, 0, missing)), torch.nn.functional.pad(factors.b, (0, missing)))


def load_on_meta(model: PreTrainedModel, folder: Path) -> None:
    """Load a PEFT folder as its users do, onto a model on the meta device. Raises and warns as PEFT does."""
    PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=True, local_files_only=True)
