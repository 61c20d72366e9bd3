"""Loads the frozen base at 4, 8, 16 or 32 bits, the same way on CPU and CUDA, and keeps one loaded between tasks.

Only the body is quantised. A classification head is trained, so it stays in 32 bits and starts from the run's seed.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from fedpipe_trainer import device as devices
from fedpipe_trainer.contract import Bits, FailureReason, Objective, SequenceClassification
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import AUTO_CLASSES, head_parameters, modules_of, read_config, skeleton
from fedpipe_trainer.model.source import fingerprint

_COMPUTE: Final[dict[Bits, torch.dtype]] = {4: torch.bfloat16, 8: torch.bfloat16, 16: torch.bfloat16, 32: torch.float32}

# int8 layers log a line per call when their input is bf16.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Base:
    """A loaded base: every parameter frozen, dropout off, the head's values undefined until adapters are attached."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    bits: Bits
    device: torch.device
    fingerprint: str
    head: tuple[str, ...]
    """Parameters that are trained and sent whole, by name."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the activations."""
        return _COMPUTE[self.bits]

    @property
    def held_bytes(self) -> int:
        """Bytes of the weights as loaded, quantisation statistics included."""
        tensors: dict[int, Tensor] = {}
        for _, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            tensors |= {t.data_ptr(): t for t in [tensor, *_statistics(tensor)]}
        return sum(t.numel() * t.element_size() for t in tensors.values())


_Key = tuple[str, Bits, str, tuple[str, ...]]
_kept: dict[_Key, Base] = {}


def borrow(folder: Path, bits: Bits, objective: Objective) -> Base:
    """The base at this bit width: the one kept from the last task if it is the same, else newly loaded and kept.

    Raises:
        TaskFailed: BadModel, see `load`.
    """
    labels = objective.labels if isinstance(objective, SequenceClassification) else ()
    key = (fingerprint(folder), bits, objective.type, labels)
    if key not in _kept:
        release()
        _kept[key] = load(folder, bits, objective)
    return _kept[key]


def release() -> None:
    """Forget the base that was kept and give its memory back."""
    _kept.clear()
    devices.release_freed()


def load(folder: Path, bits: Bits, objective: Objective) -> Base:
    """Load the base from a local folder; nothing asks a hub.

    Raises:
        TaskFailed: BadModel, the checkpoint does not fit its configuration, or lacks weights.
    """
    device = devices.choose()
    config = read_config(folder, objective)
    tokenizer = read_tokenizer(folder)
    config.pad_token_id = pad_id = _pad_id(tokenizer, folder)
    head = head_parameters(skeleton(config, objective), objective, folder)
    with devices.tight_heap():
        model, missing = _from_pretrained(folder, objective, config=config, bits=bits, kept=modules_of(head))
    if stray := sorted(missing - set(head)):
        msg = f"the checkpoint in {folder} has no weights for {', '.join(stray[:5])}: the file and config.json do not belong together"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    _prepare(model, head)
    return Base(model, tokenizer, pad_id, bits, device, fingerprint(folder), head)


def _from_pretrained(
    folder: Path,
    objective: Objective,
    *,
    config: PretrainedConfig,
    bits: Bits,
    kept: tuple[str, ...],
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the parameters that the checkpoint has no value for."""
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a head that is missing is expected, and told by the return value
    try:
        model, info = AUTO_CLASSES[objective.type].from_pretrained(
            folder,
            config=config,
            dtype=_COMPUTE[bits],
            device_map={"": devices.choose()},
            quantization_config=_quantisation(bits, kept),
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        if devices.is_out_of_memory(error):
            raise
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model in {folder} cannot be loaded at {bits} bits: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    misfits = {entry[0] for entry in info["mismatched_keys"]}
    return model, set(info["missing_keys"]) | misfits


def _quantisation(bits: Bits, kept: tuple[str, ...]) -> BitsAndBytesConfig | None:
    """NF4 with double quantisation (Dettmers et al., arXiv 2305.14314) or LLM.int8(); `kept` modules stay as they are."""
    skipped = list(kept) or None
    if bits == 4:  # noqa: PLR2004 - a bit width is its own name
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=skipped,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped) if bits == 8 else None  # noqa: PLR2004 - likewise


def _prepare(model: PreTrainedModel, head: tuple[str, ...]) -> None:
    model.eval()
    model.requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On CPUs with AVX512-BF16 a forward pass in eval mode would repack the weight for a kernel that has no
            # backward: all later gradients of the layers below would vanish without an error.
            module.support_avx512bf16_for_cpu = False
    for name in modules_of(head):
        module = model.get_submodule(name)
        module.float()
        module.register_forward_pre_hook(_in_full_precision)


def _in_full_precision(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        TaskFailed: BadModel, its files cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TaskFailed(FailureReason.BAD_MODEL, f"the tokenizer in {folder} cannot be read: {error}") from error
    return tokenizer


def _pad_id(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise TaskFailed(FailureReason.BAD_MODEL, f"the tokenizer in {folder} has neither a padding nor an end-of-sequence token")


def _statistics(tensor: Tensor) -> list[Tensor]:
    """What bitsandbytes keeps beside a quantised weight."""
    state = getattr(tensor, "quant_state", None)
    nested = getattr(state, "state2", None)
    found = [getattr(tensor, "SCB", None), getattr(state, "absmax", None), getattr(nested, "absmax", None)]
    return [t for t in found if isinstance(t, Tensor)]
