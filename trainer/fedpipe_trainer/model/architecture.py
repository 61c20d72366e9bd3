"""What a model is made of, read from its configuration alone: target weights, head, sizes. No weight is loaded here."""

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
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.source import checkpoint_keys

AUTO_CLASSES: Final[dict[str, Any]] = {
    "CausalLM": AutoModelForCausalLM,
    "Seq2SeqLM": AutoModelForSeq2SeqLM,
    "SequenceClassification": AutoModelForSequenceClassification,
}

KEY_PREFIX: Final = "base_model.model."
"""What stands before a module's path in the keys of an adapter file (peft's wrapper)."""

_LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_BERT = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
# FedPipe (arXiv 2404.06448) adapts W_q, W_k, W_v, W_o of every block; each family spells them in its own way.
_TARGETS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "olmo", "olmo2", "granite", "smollm3"), _LLAMA),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "mpnet": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    **dict.fromkeys(("t5", "mt5", "umt5"), ("Attention.q", "Attention.k", "Attention.v", "Attention.o")),
}


def read_config(folder: Path, objective: Objective) -> PretrainedConfig:
    """The model's configuration, with the objective's labels in it.

    Raises:
        TaskFailed: BadModel, config.json is no configuration that transformers knows.
    """
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TaskFailed(FailureReason.BAD_MODEL, f"{folder}/config.json: {error}") from error
    if isinstance(objective, SequenceClassification):
        config.id2label = dict(enumerate(objective.labels))
        config.label2id = {label: index for index, label in enumerate(objective.labels)}
        config.problem_type = "single_label_classification"
    return config


def skeleton(config: PretrainedConfig, objective: Objective) -> PreTrainedModel:
    """The model without memory: every module and shape on the meta device.

    Raises:
        TaskFailed: BadModel, transformers has no such model for this objective.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AUTO_CLASSES[objective.type].from_config(config)
    except ValueError as error:
        msg = f"model type {config.model_type!r} cannot be used for {objective.type}: {error}"
        raise TaskFailed(FailureReason.BAD_MODEL, msg) from error
    return model


def head_parameters(model: PreTrainedModel, objective: Objective, folder: Path) -> tuple[str, ...]:
    """Names of the parameters of a classification head. None for language models.

    The head is what stands outside the pre-trained body, and a pooler between the two (BERT's) if the checkpoint in
    `folder` has none: a masked language model is saved without.
    """
    if not isinstance(objective, SequenceClassification):
        return ()
    names = [name for name, _ in model.named_parameters()]
    outside = [name for name in names if not name.startswith(f"{model.base_model_prefix}.")]
    stored = {key.partition("pooler.")[2] for key in checkpoint_keys(folder)}
    poolers = [name for name in names if "pooler." in name and name.partition("pooler.")[2] not in stored]
    return (*outside, *(name for name in poolers if name not in outside))


def modules_of(parameters: tuple[str, ...]) -> tuple[str, ...]:
    """The modules that hold these parameters, by name, sorted."""
    return tuple(sorted({name.rpartition(".")[0] for name in parameters}))


def head_modules(parameters: tuple[str, ...]) -> tuple[str, ...]:
    """The outermost modules of a head, as peft's `modules_to_save` wants them: `classifier`, `score`, `bert.pooler`."""
    paths = [name.split(".") for name in parameters]
    return tuple(sorted({".".join(path[: path.index("pooler") + 1]) if "pooler" in path else path[0] for path in paths}))


def target_weights(model: nn.Module, model_type: str, target_modules: tuple[str, ...]) -> tuple[WeightShape, ...]:
    """The weights that may get an adapter, in the model's order.

    Args:
        model: loaded or a skeleton.
        model_type: `config.model_type`.
        target_modules: name endings, or empty for those of the architecture.

    Raises:
        TaskFailed: BadModel, the architecture is not known or no linear layer's name ends so.
    """
    endings = target_modules or _TARGETS.get(model_type, ())
    if not endings:
        msg = f"which weights to adapt is not known for model type {model_type!r}: name them in planning.targetModules"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    weights = tuple(
        WeightShape(name=name, d_out=shape[0], d_in=shape[1])
        for name, module in model.named_modules()
        if _ends_in(name, endings) and (shape := linear_shape(module)) is not None
    )
    if not weights:
        msg = f"no linear layer of this {model_type} model has a name that ends in {', '.join(endings)}: see planning.targetModules"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    return weights


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(d_out, d_in) of a linear layer of any kind; None for any other module. GPT-2's Conv1D stores its weight transposed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    if isinstance(module, nn.Linear):  # the quantised layers of bitsandbytes are subclasses
        return module.out_features, module.in_features
    return None


def matrix_parameters(model: nn.Module) -> int:
    """Elements of all linear layers: what a token's FLOP are counted from (2 a forward pass)."""
    shapes = [shape for module in model.modules() if (shape := linear_shape(module)) is not None]
    return sum(d_out * d_in for d_out, d_in in shapes)


def head_shapes(folder: Path, objective: Objective) -> dict[str, tuple[int, ...]]:
    """Shape by name of the head's parameters; -1 for the number of labels, which is found by comparing two sizes of head."""
    if not isinstance(objective, SequenceClassification):
        return {}
    two, three = (_head_with(folder, objective, labels) for labels in (("0", "1"), ("0", "1", "2")))
    return {name: tuple(-1 if a != b else a for a, b in zip(two[name], three[name], strict=True)) for name in two}


def facts(folder: Path, objective: Objective, target_modules: tuple[str, ...]) -> BaseModelFacts:
    """What the planner must know of the model in this folder."""
    config = read_config(folder, objective)
    model = skeleton(config, objective)
    text = config.get_text_config()
    return BaseModelFacts(
        architecture=config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        quantised_parameters=_quantised_parameters(model, objective, folder),
        layers=text.num_hidden_layers + getattr(text, "num_decoder_layers", 0) * bool(config.is_encoder_decoder),
        hidden_size=text.hidden_size,
        intermediate_size=_intermediate_size(text),
        attention_heads=text.num_attention_heads,
        vocabulary_size=text.vocab_size,
        weights=target_weights(model, config.model_type, target_modules),
        head={f"{KEY_PREFIX}{name}": shape for name, shape in head_shapes(folder, objective).items()},
        materialised_attention=config._attn_implementation == "eager",  # noqa: SLF001 - transformers has no public name for it
        merged_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
    )


def _ends_in(name: str, endings: tuple[str, ...]) -> bool:
    return any(f".{name}".endswith(ending if ending[0].isupper() else f".{ending}") for ending in endings)


def _head_with(folder: Path, objective: SequenceClassification, labels: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    with_labels = objective.model_copy(update={"labels": labels})
    model = skeleton(read_config(folder, with_labels), with_labels)
    parameters = dict(model.named_parameters())
    return {name: tuple(parameters[name].shape) for name in head_parameters(model, with_labels, folder)}


def _quantised_parameters(model: PreTrainedModel, objective: Objective, folder: Path) -> int:
    kept = set(modules_of(head_parameters(model, objective, folder)))
    output = model.get_output_embeddings()
    return sum(
        shape[0] * shape[1]
        for name, module in model.named_modules()
        if (shape := linear_shape(module)) is not None and name not in kept and module is not output
    )


def _intermediate_size(config: PretrainedConfig) -> int:
    found = next((getattr(config, name, None) for name in ("intermediate_size", "d_ff", "n_inner") if getattr(config, name, None)), None)
    return int(found or 4 * config.hidden_size)
