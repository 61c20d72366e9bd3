"""The global adapter as a plain PEFT folder: what `PeftModel.from_pretrained(base, folder)` reads, with nothing of ours needed.

Ranks differ by weight here, but many readers of adapters stumble over rank patterns: every weight is padded with
zeros to the largest rank, and alpha = rank makes the scale 1.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from fedpipe_trainer.adapters.lora import lora_config
from fedpipe_trainer.adapters.wire import Factors, GlobalUpdate, key_of, key_of_a, key_of_b, write_tensors
from fedpipe_trainer.contract import FailureReason, Objective
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import head_modules
from fedpipe_trainer.model.base import Base

_TASK_TYPES: Final = {"CausalLM": "CAUSAL_LM", "Seq2SeqLM": "SEQ_2_SEQ_LM", "SequenceClassification": "SEQ_CLS"}


def write_peft_folder(base: Base, update: GlobalUpdate, objective: Objective, *, source: str, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        base: the base the update is for.
        update: the global adapter.
        objective: gives the task type.
        source: the base as adapter_config.json names it.
        folder: where to; it exists.

    Raises:
        TaskFailed: BadTask, the global adapter has no weight.
    """
    if not update.weights:
        raise TaskFailed(FailureReason.BAD_TASK, "the global adapter has no weight with a rank: there is no LoRA adapter to export")
    rank = max(factors.rank for factors in update.weights.values())
    config = lora_config(
        base.model,
        dict.fromkeys(update.weights, rank),
        r=rank,
        lora_alpha=rank,
        task_type=_TASK_TYPES[objective.type],
        modules_to_save=list(head_modules(base.head)) or None,
        base_model_name_or_path=source,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {key_of(name): tensor for name, tensor in update.head.items()}
    for weight, factors in update.weights.items():
        padded = _padded(factors, rank)
        tensors |= {key_of_a(weight): padded.a, key_of_b(weight): padded.b}
    write_tensors(tensors, folder / "adapter_model.safetensors")


def merge(base: Base, update: GlobalUpdate) -> None:
    """Add the update to the base's own weights, for good: W + B·A in float32. The head takes its global values.

    The base must be loaded at 32 bits (a quantised one would round the sum away) and is a base no more.
    """
    with torch.no_grad():
        for weight, factors in update.weights.items():
            module = base.model.get_submodule(weight)
            product = (factors.b @ factors.a).to(base.device)
            module.get_parameter("weight").add_(product.T if isinstance(module, Conv1D) else product)
        for name, tensor in update.head.items():
            base.model.get_parameter(name).copy_(tensor)


def _padded(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.rank
    return Factors(torch.nn.functional.pad(factors.a, (0, 0, 0, missing)), torch.nn.functional.pad(factors.b, (0, missing)))
