"""What a base model is, from its configuration and its tokenizer: what `fedpipe init` chooses a task by. No weight is read."""

import json
from pathlib import Path
from typing import Final

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from fedpipe_trainer.contract import CausalLM, Objective, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.contract.inspection import ModelFacts, ModelKind
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.architecture import build_meta_model, read_config, target_weights
from fedpipe_trainer.model.base import read_tokenizer
from fedpipe_trainer.model.limits import check_vocabulary, count_positions

_GENERATING: Final = ("ForCausalLM", "LMHeadModel")
"""How the names of transformers' classes of models that continue a text end."""
_OBJECTIVES: Final[dict[ModelKind, Objective]] = {
    "decoder": CausalLM(format="Text"),
    "encoder": SequenceClassification(labels=("0", "1")),
    "encoder-decoder": Seq2SeqLM(format="Alpaca"),
}
"""By kind, a task that its models have a class for."""


def describe_model(folder: Path) -> ModelFacts:
    """What is known of the model in this folder, whose files have been checked.

    Raises:
        TaskFailed: BadModel, it cannot be read, or transformers has no class for it.
    """
    config = read_config(folder, _OBJECTIVES["decoder"])
    kind, tokenizer = model_kind(config), read_tokenizer(folder)
    objective = _OBJECTIVES["decoder" if kind == "unknown" else kind]
    model = build_meta_model(read_config(folder, objective), objective)
    check_vocabulary(model, tokenizer)
    try:
        has_default_targets = bool(target_weights(model, config.model_type, ()))
    except TaskFailed:
        has_default_targets = False
    return ModelFacts(
        architecture=config.model_type,
        kind=kind,
        has_chat_template=bool(tokenizer.chat_template),
        positions=count_positions(model),
        has_default_targets=has_default_targets,
        labels=_own_labels(folder),
    )


def model_kind(config: PretrainedConfig) -> ModelKind:
    """Whether the model continues texts, reads them, or rewrites them.

    Its class says it where the configuration names one that generates: transformers can also read BERT as a model that does.
    """
    if config.is_encoder_decoder:
        return "encoder-decoder"
    if any(name.endswith(_GENERATING) for name in config.architectures or ()):
        return "decoder"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    return "decoder" if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "unknown"


def _own_labels(folder: Path) -> tuple[str, ...]:
    """The labels of a checkpoint that is a classifier already; empty for another, and for names that say nothing."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label")
    labels = tuple(map(str, found.values())) if isinstance(found, dict) else ()
    return () if all(label.startswith("LABEL_") for label in labels) else labels
