"""Rows to token ids, by objective. Nothing is padded here, so an example has one form whatever batch it lands in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fedpipe_trainer.contract import CausalLM, FailureReason, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data.rows import Row
from fedpipe_trainer.data.templates import fill
from fedpipe_trainer.errors import TaskFailed

IGNORED: Final = -100
"""The label of a position that the loss leaves out (what torch's cross entropy ignores by default)."""


class Tokenizer(Protocol):
    """What we use of a transformers tokenizer."""

    eos_token_id: int | None

    def __call__(self, text: list[str] | None = None, **options: Any) -> Any:  # noqa: ANN401 - transformers' own signature
        """Token ids under "input_ids", a list per text."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sample. `labels`: one class index; or a token per input position (CausalLM) or per target position (Seq2SeqLM)."""

    input_ids: list[int]
    labels: list[int]


def encode(rows: Sequence[Row], objective: SequenceClassification | CausalLM | Seq2SeqLM, tokenizer: Tokenizer) -> list[Example]:
    """The examples of these rows, in their order, none longer than `objective.max_length`.

    Raises:
        TaskFailed: BadData for a label the run does not know; BadModel for a tokenizer without an end-of-sequence token.
    """
    if not rows:
        return []
    return _ENCODERS[type(objective)](rows, objective, tokenizer)


def encode_prompts(prompts: Sequence[str], objective: CausalLM | Seq2SeqLM, tokenizer: Tokenizer, *, room: int) -> list[list[int]]:
    """Token ids of prompts to be answered with up to `room` tokens, cut as `encode` cuts them."""
    if isinstance(objective, Seq2SeqLM):
        return _ids(tokenizer, prompts, truncation=True, max_length=objective.max_length)
    keep = _prompt_room(objective.max_length, room)
    return [ids[-keep:] for ids in _ids(tokenizer, prompts)]


def _classification(rows: Sequence[Row], objective: SequenceClassification, tokenizer: Tokenizer) -> list[Example]:
    index = {label: position for position, label in enumerate(objective.labels)}
    for row in rows:
        if row[objective.label] not in index:
            known = ", ".join(objective.labels[:20]) + (", …" if len(objective.labels) > 20 else "")  # noqa: PLR2004 - as many as one line shows
            raise TaskFailed(
                FailureReason.BAD_DATA,
                f"the label {row[objective.label]!r} in column {objective.label!r} is none of the run's {len(index)} labels ({known}): "
                "correct the row, or name the label in the run's task",
            )
    ids = _ids(tokenizer, [row[objective.text] for row in rows], truncation=True, max_length=objective.max_length)
    return [Example(tokens, [index[row[objective.label]]]) for tokens, row in zip(ids, rows, strict=True)]


def _causal(rows: Sequence[Row], objective: CausalLM, tokenizer: Tokenizer) -> list[Example]:
    end = tokenizer.eos_token_id
    if end is None:
        raise TaskFailed(FailureReason.BAD_MODEL, "the tokenizer has no end-of-sequence token: a model could never learn to stop")
    prompts = _ids(tokenizer, [fill(objective.prompt, row) for row in rows])
    # Special tokens belong at the start of the prompt, not between prompt and response.
    responses = _ids(tokenizer, [fill(objective.response, row) for row in rows], add_special_tokens=False)
    return [_continued(prompt, [*response, end], objective.max_length) for prompt, response in zip(prompts, responses, strict=True)]


def _continued(prompt: list[int], response: list[int], max_length: int) -> Example:
    prompt = prompt[-_prompt_room(max_length, len(response)) :]
    response = response[: max_length - len(prompt)]
    # Nothing predicts the first position, so without a prompt it has no label either.
    labels = [IGNORED] * len(prompt) + response if prompt else [IGNORED, *response[1:]]
    return Example(prompt + response, labels)


def _prompt_room(max_length: int, response: int) -> int:
    """Tokens a prompt may keep, counted from its end: what the response leaves, and never less than half."""
    return max(max_length - response, max_length // 2)


def _seq2seq(rows: Sequence[Row], objective: Seq2SeqLM, tokenizer: Tokenizer) -> list[Example]:
    longest = objective.max_length
    sources = _ids(tokenizer, [fill(objective.prompt, row) for row in rows], truncation=True, max_length=longest)
    responses = [fill(objective.response, row) for row in rows]
    targets = tokenizer(text_target=responses, truncation=True, max_length=longest)["input_ids"]
    return [Example(source, list(target)) for source, target in zip(sources, targets, strict=True)]


def _ids(tokenizer: Tokenizer, texts: Sequence[str], **options: object) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), **options)["input_ids"]]


_ENCODERS: Final[dict[type, Callable[[Sequence[Row], Any, Tokenizer], list[Example]]]] = {
    SequenceClassification: _classification,
    CausalLM: _causal,
    Seq2SeqLM: _seq2seq,
}
