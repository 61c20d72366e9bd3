"""Encodes rows as token ids, by objective. Nothing is padded here, so an example does not depend on its batch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from fedpipe_trainer.contract import CausalLM, FailureReason, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data.rows import Row
from fedpipe_trainer.data.templates import fill
from fedpipe_trainer.errors import TaskFailed

_MOST_KEPT_TOKENS: Final = 1_000_000
IGNORED: Final = -100
"""The label of a position that does not count in the loss (the default `ignore_index` of torch's cross entropy)."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    eos_token_id: int | None

    def __call__(self, text: list[str] | None = None, **options: Any) -> Any:  # noqa: ANN401 - transformers' own signature
        """Token ids under "input_ids", one list per text."""


@dataclass(frozen=True, slots=True)
class Example:
    """One sample. `labels` is one class index, or one token per input position (CausalLM) or per target position (Seq2SeqLM)."""

    input_ids: list[int]
    labels: list[int]


_last_encoded: WeakKeyDictionary[Tokenizer, tuple[bytes, list[Example]]] = WeakKeyDictionary()
"""By tokenizer, the examples that `encode_once` encoded last and the hash of the rows that they are made from."""


def encode(rows: Sequence[Row], objective: SequenceClassification | CausalLM | Seq2SeqLM, tokenizer: Tokenizer) -> list[Example]:
    """The examples of these rows, in the same order, each truncated to `objective.max_length` tokens.

    Raises:
        TaskFailed: BadData for a label that the run does not have; BadModel for a tokenizer without an end-of-sequence token.
    """
    if not rows:
        return []
    return _ENCODERS[type(objective)](rows, objective, tokenizer)


def encode_once(rows: Sequence[Row], objective: SequenceClassification | CausalLM | Seq2SeqLM, tokenizer: Tokenizer) -> list[Example]:
    """As `encode`, but what was encoded last with this tokenizer is kept: a site trains on the same rows in every round.

    The examples are recognised by the texts of the rows, so a changed file is encoded anew. They are kept no longer than the
    tokenizer, and not at all if they have more than a million tokens (some 40 MB).
    """
    digest = sha256(objective.to_json().encode())
    for row in rows:
        digest.update(json.dumps(row).encode())
    last, examples = _last_encoded.get(tokenizer, (b"", []))
    if last != digest.digest():
        examples = encode(rows, objective, tokenizer)
        if sum(len(example.input_ids) + len(example.labels) for example in examples) <= _MOST_KEPT_TOKENS:
            _last_encoded[tokenizer] = digest.digest(), examples
    return examples


def encode_prompts(
    prompts: Sequence[str], objective: CausalLM | Seq2SeqLM, tokenizer: Tokenizer, *, max_new_tokens: int
) -> list[list[int]]:
    """Token ids of prompts, truncated as by `encode` for responses of up to `max_new_tokens` tokens."""
    if isinstance(objective, Seq2SeqLM):
        return _tokenize(tokenizer, prompts, truncation=True, max_length=objective.max_length)
    keep = _prompt_budget(objective.max_length, max_new_tokens)
    return [ids[-keep:] for ids in _tokenize(tokenizer, prompts)]


def _classification(rows: Sequence[Row], objective: SequenceClassification, tokenizer: Tokenizer) -> list[Example]:
    index = {label: position for position, label in enumerate(objective.labels)}
    if any(row[objective.label] not in index for row in rows):
        # `select_rows` names the rows.
        raise TaskFailed(FailureReason.BAD_DATA, f"a value of column {objective.label!r} is not one of the run's {len(index)} labels")
    ids = _tokenize(tokenizer, [row[objective.text] for row in rows], truncation=True, max_length=objective.max_length)
    return [Example(tokens, [index[row[objective.label]]]) for tokens, row in zip(ids, rows, strict=True)]


def _causal(rows: Sequence[Row], objective: CausalLM, tokenizer: Tokenizer) -> list[Example]:
    end = tokenizer.eos_token_id
    if end is None:
        raise TaskFailed(
            FailureReason.BAD_MODEL,
            "the tokenizer has no end-of-sequence token, so the model cannot learn where a response ends: use a tokenizer that has one",
        )
    prompts = _tokenize(tokenizer, [fill(objective.prompt, row) for row in rows])
    # The tokenizer adds special tokens only at the start of the prompt, not between prompt and response.
    responses = _tokenize(tokenizer, [fill(objective.response, row) for row in rows], add_special_tokens=False)
    return [_join(prompt, [*response, end], objective.max_length) for prompt, response in zip(prompts, responses, strict=True)]


def _join(prompt: list[int], response: list[int], max_length: int) -> Example:
    prompt = prompt[-_prompt_budget(max_length, len(response)) :]
    response = response[: max_length - len(prompt)]
    # No position predicts the first one, so without a prompt the first token has no label.
    labels = [IGNORED] * len(prompt) + response if prompt else [IGNORED, *response[1:]]
    return Example(prompt + response, labels)


def _prompt_budget(max_length: int, response: int) -> int:
    """Tokens of a prompt to keep, counted from its end: what the response leaves of `max_length`, but at least half of it."""
    return max(max_length - response, max_length // 2)


def _seq2seq(rows: Sequence[Row], objective: Seq2SeqLM, tokenizer: Tokenizer) -> list[Example]:
    longest = objective.max_length
    sources = _tokenize(tokenizer, [fill(objective.prompt, row) for row in rows], truncation=True, max_length=longest)
    responses = [fill(objective.response, row) for row in rows]
    targets = tokenizer(text_target=responses, truncation=True, max_length=longest)["input_ids"]
    return [Example(source, list(target)) for source, target in zip(sources, targets, strict=True)]


def _tokenize(tokenizer: Tokenizer, texts: Sequence[str], **options: object) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), **options)["input_ids"]]


_ENCODERS: Final[dict[type, Callable[[Sequence[Row], Any, Tokenizer], list[Example]]]] = {
    SequenceClassification: _classification,
    CausalLM: _causal,
    Seq2SeqLM: _seq2seq,
}
