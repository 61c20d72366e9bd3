"""The architecture of a model, read from its configuration: target weights, head, sizes. No weights are loaded here."""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from fedpipe_trainer.contract import BaseModelFacts, FailureReason, Objective, SequenceClassification, WeightShape
from fedpipe_trainer.contract.task import Attention
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.files import weight_files
from fedpipe_trainer.model.source import checkpoint_keys
from fedpipe_trainer.model.whole_modules import check_apart, lowest_layer_of, whole_parameters

AUTO_CLASSES: Final[dict[str, Any]] = {
    "CausalLM": AutoModelForCausalLM,
    "Preference": AutoModelForCausalLM,
    "Seq2SeqLM": AutoModelForSeq2SeqLM,
    "SequenceClassification": AutoModelForSequenceClassification,
}

_PROBLEM_TYPES: Final[dict[str, Any]] = {
    "SingleLabel": "single_label_classification",
    "MultiLabel": "multi_label_classification",
    "Regression": "regression",
}
"""transformers' names."""

KEY_PREFIX: Final = "base_model.model."
"""Prefix of a module's path in the keys of an adapter file (from peft's wrapper)."""

ALL_LINEAR: Final = "all-linear"
"""In place of suffixes, as in peft: every linear layer but the output and the head. Of experts, those that are linear layers."""

_INTERMEDIATE_SIZES: Final = ("intermediate_size", "d_ff", "encoder_ffn_dim", "ffn_dim", "hidden_dim", "n_inner")
_DECODERS: Final = (".decoder.", ".model.decoder.")
_ENCODER_LAYER: Final = re.compile(r"^(model\.)?encoder\.(block|layers)\.\d+$")
"""The layers of the encoder of an encoder-decoder, by module path."""

_LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_BERT = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
_BART = tuple(f"{attention}.{part}_proj" for attention in ("self_attn", "encoder_attn") for part in ("q", "k", "v", "out"))
_GPT = ("attn.c_attn", "attn.c_proj")
_FALCON = ("self_attention.query_key_value", "self_attention.dense")
# FedPipe (arXiv 2404.06448) adapts W_q, W_k, W_v, W_o of every block; each model family names them differently, and some have W_q, W_k
# and W_v as one weight. Of a mixture of experts, that leaves the experts and their router out. docs/models.md has the tested ones.
_TARGETS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3", "granite"), _LLAMA),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "smollm3", "starcoder2", "stablelm", "cohere"), _LLAMA),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj"),
    "phi": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
    "opt": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT),
    "gpt_neox": ("attention.query_key_value", "attention.dense"),
    "gpt_neo": ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj"),
    "gptj": ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"),
    **dict.fromkeys(("falcon", "bloom"), _FALCON),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "distilbert": ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
    "deberta": ("attention.self.in_proj", "attention.output.dense"),
    "deberta-v2": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj", "attention.output.dense"),
    "mpnet": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "modernbert": ("attn.Wqkv", "attn.Wo"),
    **dict.fromkeys(("t5", "mt5", "umt5"), ("Attention.q", "Attention.k", "Attention.v", "Attention.o")),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian"), _BART),
}


def read_config(folder: Path, objective: Objective, attention: Attention | None = None) -> PretrainedConfig:
    """The model's configuration, with the objective's labels and the way of computing attention set; None: as transformers chooses.

    Raises:
        TaskFailed: BadModel, config.json is not a configuration that transformers knows.
    """
    try:
        options = {"attn_implementation": attention} if attention else {}
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        raise TaskFailed(FailureReason.BAD_MODEL, f"{folder}/config.json cannot be read: {error}") from error
    if isinstance(objective, SequenceClassification):
        labels = (objective.label,) if objective.problem == "Regression" else objective.labels
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = _PROBLEM_TYPES[objective.problem]
    return config


def build_meta_model(config: PretrainedConfig, objective: Objective) -> PreTrainedModel:
    """The model on the meta device: every module and shape, without memory for the weights.

    Raises:
        TaskFailed: BadModel, transformers has no model class of this type for the objective.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AUTO_CLASSES[objective.type].from_config(config, trust_remote_code=False)
    except ValueError as error:
        msg = f"model type {config.model_type!r} cannot be used for {objective.type}: {error}"
        raise TaskFailed(FailureReason.BAD_MODEL, msg) from error
    return model


def head_parameters(model: PreTrainedModel, objective: Objective, folder: Path) -> tuple[str, ...]:
    """Names of the parameters of a classification head; empty for language models.

    The head consists of the parameters outside the pre-trained body. A pooler between them (as in BERT) belongs to the
    head if the checkpoint in `folder` does not contain it: a masked language model is saved without one.
    """
    if not isinstance(objective, SequenceClassification):
        return ()
    names = [name for name, _ in model.named_parameters()]
    outside = [name for name in names if not name.startswith(f"{model.base_model_prefix}.")]
    stored = {key.partition("pooler.")[2] for key in checkpoint_keys(folder)}
    poolers = [name for name in names if "pooler." in name and name.partition("pooler.")[2] not in stored]
    return (*outside, *(name for name in poolers if name not in outside))


def modules_of(parameters: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the modules that hold these parameters, sorted."""
    return tuple(sorted({name.rpartition(".")[0] for name in parameters}))


def head_modules(parameters: tuple[str, ...]) -> tuple[str, ...]:
    """The outermost modules of a head, as in peft's `modules_to_save`: `classifier`, `score`, `bert.pooler`."""
    paths = [name.split(".") for name in parameters]
    return tuple(sorted({".".join(path[: path.index("pooler") + 1]) if "pooler" in path else path[0] for path in paths}))


def target_weights(model: nn.Module, model_type: str, target_modules: tuple[str, ...]) -> tuple[WeightShape, ...]:
    """The weights that may get an adapter, in the model's order.

    Args:
        model: a loaded model or one on the meta device.
        model_type: `config.model_type`.
        target_modules: suffixes of module names, or `all-linear` for all linear layers of the model's layers; empty for the
            defaults of the architecture.

    Raises:
        TaskFailed: BadModel, the architecture is unknown, or no linear layer has a name with such a suffix.
    """
    encoder_layers = count_encoder_layers(model)
    suffixes = target_modules or _TARGETS.get(model_type, ())
    if not suffixes:
        msg = f"there are no default target modules for model type {model_type!r}: name them in planning.targetModules"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    is_target = _is_in_a_layer if suffixes == (ALL_LINEAR,) else partial(_has_suffix, suffixes=suffixes)
    weights = tuple(
        WeightShape(name=name, d_out=shape[0], d_in=shape[1], layer=layer_of(name, encoder_layers))
        for name, module in model.named_modules()
        if is_target(name) and (shape := linear_shape(module)) is not None
    )
    if not weights:
        msg = f"no linear layer of this {model_type} model has a name that ends in {', '.join(suffixes)}: see planning.targetModules"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    _check_untied(model, weights)
    return weights


def _check_untied(model: nn.Module, weights: Iterable[WeightShape]) -> None:
    """Refuse an adapter on a weight that another module uses, too: merged into one it would change the other."""
    suffix = ".weight"
    parameters = {key.removesuffix(suffix): one for key, one in model.named_parameters(remove_duplicate=False) if key.endswith(suffix)}
    for weight in weights:
        others = [name for name, one in parameters.items() if one is parameters[weight.name] and name != weight.name]
        if others:
            msg = f"{weight.name} has the same weight as {', '.join(others)} (tied), so that an adapter of it would change both when merged"
            raise TaskFailed(FailureReason.BAD_MODEL, f"{msg}: leave it out of planning.targetModules, or untie and save the model")


def count_encoder_layers(model: nn.Module) -> int:
    """Number of layers of the encoder of an encoder-decoder; 0 for other models."""
    return sum(1 for name, _ in model.named_modules() if _ENCODER_LAYER.search(name))


def layer_of(weight: str, encoder_layers: int) -> int:
    """The layer of a weight, counted from the input: the first number in its module path; a decoder's layers follow the encoder's.

    Args:
        weight: the module path.
        encoder_layers: number of layers of the encoder of an encoder-decoder.
    """
    number = next((int(part) for part in weight.split(".") if part.isdecimal()), 0)
    return number + encoder_layers if f".{weight}".startswith(_DECODERS) else number


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_out, d_in) of any kind of linear layer; None for other modules. GPT-2's Conv1D stores its weight transposed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    if isinstance(module, nn.Linear):  # the quantised layers of bitsandbytes are subclasses
        return module.out_features, module.in_features
    return None


def head_shapes(folder: Path, objective: Objective) -> dict[str, tuple[int, ...]]:
    """Shape by name of the head's parameters. The number of labels is -1; its dimension is found by comparing two sizes of the head."""
    if not isinstance(objective, SequenceClassification):
        return {}
    if objective.problem == "Regression":
        return _head_with(folder, objective, ())
    two, three = (_head_with(folder, objective, labels) for labels in (("0", "1"), ("0", "1", "2")))
    return {name: tuple(-1 if a != b else a for a, b in zip(two[name], three[name], strict=True)) for name in two}


def facts(
    folder: Path,
    objective: Objective,
    target_modules: tuple[str, ...],
    attention: Attention | None = None,
    modules_to_save: tuple[str, ...] = (),
) -> BaseModelFacts:
    """The facts about the model in this folder that the planner needs.

    Raises:
        TaskFailed: BadModel, no weight can get an adapter, or a module cannot be trained whole.
    """
    config = read_config(folder, objective, attention)
    model = build_meta_model(config, objective)
    text = config.get_text_config()
    layers = text.num_hidden_layers + _decoder_layers(text) * bool(config.is_encoder_decoder)
    weights = target_weights(model, config.model_type, target_modules)
    whole = whole_parameters(model, modules_to_save, head=head_parameters(model, objective, folder))
    check_apart(whole, [weight.name for weight in weights])
    return BaseModelFacts(
        architecture=config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        quantised_parameters=_quantised_parameters(model, (*head_parameters(model, objective, folder), *whole)),
        layers=layers,
        hidden_size=text.hidden_size,
        intermediate_size=_intermediate_size(text),
        attention_heads=text.num_attention_heads,
        vocabulary_size=text.vocab_size,
        weights=weights,
        head={f"{KEY_PREFIX}{name}": shape for name, shape in head_shapes(folder, objective).items()},
        whole={f"{KEY_PREFIX}{name}": tuple(model.get_parameter(name).shape) for name in whole},
        whole_layer=lowest_layer_of(model, whole, layers) if whole else 0,
        encoder_decoder=bool(config.is_encoder_decoder),
        supports_gradient_checkpointing=bool(model.supports_gradient_checkpointing),
        materialised_attention=config._attn_implementation == "eager",  # noqa: SLF001 - transformers has no public name for it
        merged_bytes=sum(path.stat().st_size for path in weight_files(folder)),
    )


def _is_in_a_layer(name: str) -> bool:
    """Whether a module belongs to one of the model's layers, and not to its embeddings, its output or a head."""
    return any(part.isdecimal() for part in name.split("."))


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return any(f".{name}".endswith(suffix if suffix[0].isupper() else f".{suffix}") for suffix in suffixes)


def _head_with(folder: Path, objective: SequenceClassification, labels: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    with_labels = objective.model_copy(update={"labels": labels})
    model = build_meta_model(read_config(folder, with_labels), with_labels)
    parameters = dict(model.named_parameters())
    return {name: tuple(parameters[name].shape) for name in head_parameters(model, with_labels, folder)}


def _quantised_parameters(model: PreTrainedModel, trained: tuple[str, ...]) -> int:
    unquantised = set(modules_of(trained))
    output = model.get_output_embeddings()
    return sum(
        shape[0] * shape[1]
        for name, module in model.named_modules()
        if (shape := linear_shape(module)) is not None and name not in unquantised and module is not output
    )


def _decoder_layers(config: PretrainedConfig) -> int:
    """Number of layers of the decoder of an encoder-decoder, whose families name it differently."""
    return int(getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None) or 0)


def _intermediate_size(config: PretrainedConfig) -> int:
    sizes = (getattr(config, name, None) for name in _INTERMEDIATE_SIZES)
    return int(next((size for size in sizes if size), 4 * config.hidden_size))
