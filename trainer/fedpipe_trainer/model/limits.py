"""What a base model can take: positions in its tables, tokens in its embedding. Checked when a site is profiled, on the meta model.

Models that rotate by position (RoPE), or that only know distances (ALiBi, T5), have no table, and no limit here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedpipe_trainer.contract import CausalLM, Objective, Preference, SequenceClassification, prompt_budget
from fedpipe_trainer.model.architecture import build_meta_model, read_config
from fedpipe_trainer.model.files import bad_model

_UNREAD_TOKENS: Final = ("image_token", "audio_token", "video_token")
"""Tokens that no text has: a model of one kind may share the tokenizer of one that also reads images, without an embedding of these."""
_MATRIX: Final = 2


def check_model(folder: Path, objective: Objective, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int) -> None:
    """Check the model in this folder against its tokenizer and the lengths of the task, without loading weights.

    Raises:
        TaskFailed: BadModel, see `check_lengths` and `check_vocabulary`.
    """
    model = build_meta_model(read_config(folder, objective), objective)
    check_lengths(model, objective, max_new_tokens=max_new_tokens)
    check_vocabulary(model, tokenizer)


def count_positions(model: nn.Module) -> int | None:
    """Tokens of the longest text that the model has positions for; None if nothing limits it.

    Args:
        model: a loaded model or one on the meta device.
    """
    lengths = [*_position_tables(model)]
    declared = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return min([*lengths, declared] if isinstance(declared, int) and declared > 0 else lengths) if lengths else None


def check_lengths(model: PreTrainedModel, objective: Objective, *, max_new_tokens: int) -> None:
    """Check that the model has positions for the longest text of the task, and for the longest prompt with its answer.

    Args:
        model: a loaded model or one on the meta device.
        objective: of the task.
        max_new_tokens: tokens that an evaluation generates at most; 0: none.

    Raises:
        TaskFailed: BadModel; the message has the number of positions and what the task needs.
    """
    positions = count_positions(model)
    if positions is None:
        return
    has = f"the {model.config.model_type} model has only {positions} positions"
    if objective.max_length > positions:
        raise bad_model(
            f"task.maxLength is {objective.max_length}, but {has}: lower task.maxLength to {positions}, or use another base model"
        )
    if isinstance(objective, SequenceClassification | Preference) or objective.format == "Text" or not max_new_tokens:
        return
    prompt = prompt_budget(objective.max_length, max_new_tokens) if isinstance(objective, CausalLM) else 0
    if prompt + max_new_tokens > positions:
        words = f"a prompt of {prompt} tokens and {max_new_tokens} of evaluation.maxNewTokens make {prompt + max_new_tokens}"
        needed = words if prompt else f"evaluation.maxNewTokens is {max_new_tokens}"
        advice = "lower evaluation.maxNewTokens or task.maxLength" if prompt else f"lower evaluation.maxNewTokens to {positions}"
        raise bad_model(f"{needed}, but {has}: {advice}, or use another base model")


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the model has an embedding for each token of its tokenizer.

    Raises:
        TaskFailed: BadModel; the message has both numbers.
    """
    embeddings: nn.Module = model.get_input_embeddings()
    rows = getattr(embeddings, "num_embeddings", None) or model.config.get_text_config().vocab_size
    unread = {tokenizer.special_tokens_map.get(name) for name in _UNREAD_TOKENS} - {None}
    ids = {token: number for token, number in tokenizer.get_vocab().items() if token not in unread}
    beyond = sorted(number for number in ids.values() if number >= rows)
    if beyond:
        tokens = f"the tokenizer has {max(beyond) + 1} tokens, but the embedding of the {model.config.model_type} model has {rows} rows"
        advice = "use the tokenizer that the model was saved with, or enlarge the model with resize_token_embeddings and save it again"
        raise bad_model(f"{tokens}, so {len(beyond)} of the tokens cannot be looked up: {advice}")


def _position_tables(model: nn.Module) -> Iterator[int]:
    """The positions of each table, which are not all of its rows: RoBERTa's begin after the padding token's, BART's at an offset."""
    for name, module in model.named_modules():
        # FSMT makes its table longer when it has to.
        if isinstance(module, nn.Embedding) and _is_of_positions(name) and not hasattr(module, "make_weight"):
            offset = getattr(module, "offset", None)
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            yield module.num_embeddings - (offset if isinstance(offset, int) else before)
    for name, buffer in model.named_buffers():
        if _is_of_positions(name) and buffer.ndim == _MATRIX and buffer.is_floating_point():
            yield buffer.shape[0]


def _is_of_positions(name: str) -> bool:
    last = name.rpartition(".")[2].lower()
    return "pos" in last or last == "wpe"
