"""Exports the global adapter as a plain PEFT folder that `PeftModel.from_pretrained(base, folder)` reads without FedPipe, or merges it.

Ranks differ by weight, but many programs that load adapters do not support rank patterns. Therefore every weight is
padded with zeros to the largest rank; alpha = rank makes the scale 1.
"""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from fedpipe_trainer.adapters.lora import lora_config
from fedpipe_trainer.adapters.wire import AdapterTensors, Factors, lora_a_key, lora_b_key, parameter_key, write_tensors
from fedpipe_trainer.contract import FailureReason, Objective
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import head_modules
from fedpipe_trainer.model.base import Base

_TASK_TYPES: Final = {"CausalLM": "CAUSAL_LM", "Seq2SeqLM": "SEQ_2_SEQ_LM", "SequenceClassification": "SEQ_CLS"}


def write_peft_folder(base: Base, adapter: AdapterTensors, objective: Objective, *, source: str, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
        base: the base model of the adapter.
        adapter: the global adapter.
        objective: determines the task type.
        source: the name of the base model in adapter_config.json.
        folder: the folder to write to; it exists.

    Raises:
        TaskFailed: BadTask, the global adapter has no weights.
    """
    if not adapter.weights:
        raise TaskFailed(FailureReason.BAD_TASK, "there is no LoRA adapter to export: the global adapter has no weight with a rank above 0")
    rank = max(factors.rank for factors in adapter.weights.values())
    config = lora_config(
        base.model,
        dict.fromkeys(adapter.weights, rank),
        r=rank,
        lora_alpha=rank,
        task_type=_TASK_TYPES[objective.type],
        modules_to_save=list(head_modules(base.head)) or None,
        base_model_name_or_path=source,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors: dict[str, Tensor] = {parameter_key(name): tensor for name, tensor in adapter.head.items()}
    for weight, factors in adapter.weights.items():
        padded = _pad_rank(factors, rank)
        tensors |= {lora_a_key(weight): padded.a, lora_b_key(weight): padded.b}
    write_tensors(tensors, folder / "adapter_model.safetensors")


def merge(base: Base, adapter: AdapterTensors) -> None:
    """Add the adapter to the weights of the base permanently: W + B·A in float32. The head gets its global values.

    The base must be loaded at 32 bits, since rounding to fewer bits would lose the change. It must not be used as a base
    again.
    """
    with torch.no_grad():
        for weight, factors in adapter.weights.items():
            module = base.model.get_submodule(weight)
            product = (factors.b @ factors.a).to(base.device)
            module.get_parameter("weight").add_(product.T if isinstance(module, Conv1D) else product)
        for name, tensor in adapter.head.items():
            base.model.get_parameter(name).copy_(tensor)


def _pad_rank(factors: Factors, rank: int) -> Factors:
    missing = rank - factors.rank
    return Factors(torch.nn.functional.pad(factors.a, (0, 0, 0, missing)), torch.nn.functional.pad(factors.b, (0, missing)))
