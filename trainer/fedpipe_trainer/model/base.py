"""Loads the frozen base at 4, 8, 16 or 32 bits, in the same way on CPU and CUDA, and caches the last one between tasks.

Only what is frozen is quantised. A classification head is trained, so it stays in 32 bits. It is initialised from the run's seed, unless
the checkpoint is a classifier of the run's labels already: then its own head is where the training starts. Modules of the base that are
trained whole stay in 32 bits, too, and start from the checkpoint's values.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from fedpipe_trainer import device as devices
from fedpipe_trainer.contract import Bits, FailureReason, Objective, SequenceClassification
from fedpipe_trainer.contract.task import Attention
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import AUTO_CLASSES, build_meta_model, head_parameters, modules_of, read_config
from fedpipe_trainer.model.checkpoint import read_checkpoint
from fedpipe_trainer.model.files import describe_damage
from fedpipe_trainer.model.head import read_own_head
from fedpipe_trainer.model.identity import fingerprint, loaded_files
from fedpipe_trainer.model.stored_in_16_bits import compute_in_float32
from fedpipe_trainer.model.whole_modules import stored_values, whole_parameters

_STORED: Final[dict[Bits, torch.dtype]] = {4: torch.bfloat16, 8: torch.bfloat16, 16: torch.bfloat16, 32: torch.float32}
"""The type of what is not quantised."""

# int8 layers log a line per call when their input is bf16.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Base:
    """A loaded base: all is frozen, the mode is evaluation, and what is trained in full is undefined until adapters are there."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pad_id: int
    bits: Bits
    device: torch.device
    fingerprint: str
    head: tuple[str, ...]
    """Names of the parameters that are trained in full: of a classification head, and of modules that are trained whole."""
    own_head: Mapping[str, Tensor] = field(default_factory=dict)
    """The checkpoint's values of the classification head, if it is a classifier of the run's labels, in their order; otherwise empty."""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """The checkpoint's values of the parameters of modules that are trained whole. What is sent of them is the difference."""

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the activations."""
        return _compute_dtype(self.bits, self.device)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the loaded weights, including quantisation statistics."""
        tensors: dict[int, Tensor] = {}
        for _, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            tensors |= {t.data_ptr(): t for t in [tensor, *_statistics(tensor)]}
        return sum(t.numel() * t.element_size() for t in tensors.values())


_Key = tuple[str, Bits, str, tuple[str, ...], Attention | None, tuple[str, ...]]
_cache: dict[_Key, Base] = {}


def load_cached(
    folder: Path, bits: Bits, objective: Objective, attention: Attention | None = None, modules_to_save: tuple[str, ...] = ()
) -> Base:
    """The base at this bit width: from the cache if the last task used the same one, otherwise loaded and cached.

    Raises:
        TaskFailed: BadModel, see `load`.
    """
    labels = (objective.problem, *objective.labels) if isinstance(objective, SequenceClassification) else ()
    key = (fingerprint(folder), bits, objective.type, labels, attention, modules_to_save)
    if key not in _cache:
        clear_cache()
        _cache[key] = load(folder, bits, objective, attention, modules_to_save)
    return _cache[key]


def clear_cache() -> None:
    """Drop the cached base and release its memory."""
    _cache.clear()
    devices.trim_memory()


def load(  # noqa: PLR0913 -- all that determines a base
    folder: Path,
    bits: Bits,
    objective: Objective,
    attention: Attention | None = None,
    modules_to_save: tuple[str, ...] = (),
    *,
    known_fingerprint: str | None = None,
) -> Base:
    """Load the base from a local folder, without access to a hub.

    Args:
        folder: the model's folder.
        bits: of its weights.
        objective: of the task.
        attention: how attention is computed; None: as transformers chooses for the architecture.
        modules_to_save: ends of the names of modules that are trained whole.
        known_fingerprint: of this folder, where another process of the task has read all its files for it just now.

    Raises:
        TaskFailed: BadModel, the checkpoint does not fit its configuration or lacks weights, or a module cannot be trained whole.
    """
    device = devices.choose()
    config = read_config(folder, objective, attention)
    tokenizer = read_tokenizer(folder)
    config.pad_token_id = pad_id = _pad_id(tokenizer, folder)
    meta = build_meta_model(config, objective)
    head = head_parameters(meta, objective, folder)
    whole = whole_parameters(meta, modules_to_save, head=head)
    stored = stored_values(read_checkpoint(folder, meta), whole) if whole else {}
    with devices.tune_malloc_for_loading():
        model, missing = _from_pretrained(folder, objective, config=config, bits=bits, unquantised=_unquantised(meta, head, whole))
    if missing_weights := sorted(missing - set(head)):
        msg = f"the checkpoint in {folder} has no weights for {', '.join(missing_weights[:5])}: config.json belongs to another model"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    compute = _compute_dtype(bits, device)
    _freeze(model, head)
    _keep_in_float32(model, whole, compute)
    if compute is not _STORED[bits]:
        compute_in_float32(model)
    identity = known_fingerprint or fingerprint(folder)
    own = read_own_head(folder, objective, head)
    return Base(model, tokenizer, pad_id, bits, device, identity, (*head, *whole), own, stored)


def _unquantised(model: PreTrainedModel, head: tuple[str, ...], whole: tuple[str, ...]) -> tuple[str, ...]:
    """The modules that are not quantised: with a list of them, transformers quantises the output layer, too, unless it is in the list."""
    output = model.get_output_embeddings()
    outputs = [name for name, module in model.named_modules() if module is output] if whole and output is not None else []
    return tuple(sorted({*modules_of((*head, *whole)), *outputs}))


def _from_pretrained(
    folder: Path,
    objective: Objective,
    *,
    config: PretrainedConfig,
    bits: Bits,
    unquantised: tuple[str, ...],
) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of the parameters for which the checkpoint has no value."""
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # a missing head is expected, and reported in the return value
    try:
        model, info = AUTO_CLASSES[objective.type].from_pretrained(
            folder,
            config=config,
            dtype=_STORED[bits],
            device_map={"": devices.choose()},
            quantization_config=_quantisation(bits, unquantised, _compute_dtype(bits, devices.choose())),
            local_files_only=True,
            trust_remote_code=False,
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
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    return model, set(info["missing_keys"]) | mismatched


def _compute_dtype(bits: Bits, device: torch.device) -> torch.dtype:
    """The type of the activations: that of what is stored, unless the device computes with it many times slower than with float32."""
    stored = _STORED[bits]
    return stored if stored is torch.float32 or devices.computes_bfloat16(device) else torch.float32


def _quantisation(bits: Bits, unquantised: tuple[str, ...], compute: torch.dtype) -> BitsAndBytesConfig | None:
    """NF4 with double quantisation (Dettmers et al., arXiv 2305.14314) or LLM.int8(); `unquantised` modules are left out."""
    skip_modules = list(unquantised) or None
    if bits == 4:  # noqa: PLR2004 - a bit width needs no name
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=skip_modules,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_modules) if bits == 8 else None  # noqa: PLR2004 - a bit width needs no name


def _freeze(model: PreTrainedModel, head: tuple[str, ...]) -> None:
    model.eval()
    model.requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # On CPUs with AVX512-BF16, a forward pass in eval mode would repack the weight for a kernel that has no
            # backward pass: all later gradients of the layers below would be zero, without an error.
            module.support_avx512bf16_for_cpu = False
    for name in modules_of(head):
        module = model.get_submodule(name)
        module.float()
        module.register_forward_pre_hook(_cast_inputs_to_float32)


def _keep_in_float32(model: PreTrainedModel, whole: tuple[str, ...], dtype: torch.dtype) -> None:
    """Compute these modules in 32 bits, as they are trained; what they give is of the type that the modules behind them expect."""
    for name in modules_of(whole):
        module = model.get_submodule(name)
        module.float()
        module.register_forward_pre_hook(_cast_inputs_to_float32)
        module.register_forward_hook(partial(_cast_output, dtype))


def _cast_output(dtype: torch.dtype, _module: nn.Module, _inputs: object, output: Any) -> Any:  # noqa: ANN401 - of any module
    if isinstance(output, tuple):
        return tuple(_cast_output(dtype, _module, _inputs, one) for one in output)
    return output.to(dtype) if isinstance(output, Tensor) and output.is_floating_point() else output


def _cast_inputs_to_float32(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a model folder.

    Raises:
        TaskFailed: BadModel, its files cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # Rust's tokenizers raise Exception itself, sentencepiece RuntimeError, protobuf its own
        damage = describe_damage(folder, loaded_files(folder))
        msg = damage or f"the tokenizer in {folder} cannot be read: {error or type(error).__name__}"
        raise TaskFailed(FailureReason.BAD_MODEL, msg) from error
    return tokenizer


def _pad_id(tokenizer: PreTrainedTokenizerBase, folder: Path) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise TaskFailed(
        FailureReason.BAD_MODEL,
        f"the tokenizer in {folder} has neither a padding token nor an end-of-sequence token: add one to its configuration",
    )


def dense_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer (d_out × d_in), dequantised if need be; it is copied only then."""
    weight: Any = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        dense: Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        return dense
    if isinstance(layer, bnb.nn.Linear8bitLt):
        # The first forward pass moves the scale of each row from the weight to the layer's state.
        scales = layer.state.SCB if layer.state.SCB is not None else weight.SCB
        rows: Tensor = bnb.functional.int8_vectorwise_dequant(weight.data, scales)
        return rows
    values: Tensor = weight.detach()
    return values.T if isinstance(layer, Conv1D) else values


def _statistics(tensor: Tensor) -> list[Tensor]:
    """The tensors that bitsandbytes stores beside a quantised weight."""
    state = getattr(tensor, "quant_state", None)
    nested = getattr(state, "state2", None)
    statistics = [getattr(tensor, "SCB", None), getattr(state, "absmax", None), getattr(nested, "absmax", None)]
    return [t for t in statistics if isinstance(t, Tensor)]
