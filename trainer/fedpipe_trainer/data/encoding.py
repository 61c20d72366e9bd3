"""Encodes rows as token ids, by objective. Nothing is padded here, so an example does not depend on its batch.

Special tokens in the data are text: only those that the tokenizer, the chat template or this module add are special.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from fedpipe_trainer.contract import (
    CHAT_FORMATS,
    CausalLM,
    FailureReason,
    Objective,
    Preference,
    Seq2SeqLM,
    SequenceClassification,
    prompt_budget,
)
from fedpipe_trainer.data import chat
from fedpipe_trainer.data.chat_template import RefusedConversationError, require_chat_template
from fedpipe_trainer.data.conversations import without_answer
from fedpipe_trainer.data.examples import IGNORED, Example, Examples, Labels, collect
from fedpipe_trainer.data.formats import conversation_of, labels_of, prompt_of, response_of
from fedpipe_trainer.data.preferences import encode_pair
from fedpipe_trainer.data.rows import Row
from fedpipe_trainer.data.special_tokens import encode_filled, encode_plain, require_end_token, special_tokens_of, without_end
from fedpipe_trainer.data.spill import Integers
from fedpipe_trainer.data.tokenizer import Tokenizer
from fedpipe_trainer.data.unsaid import Refused, Unsaid
from fedpipe_trainer.errors import TaskFailed

_MOST_KEPT_TOKENS: Final = 1_000_000
_ROWS_OF_A_PIECE: Final = 256
"""Rows that are tokenised at once: as Python integers their tokens take ten times the memory."""
_MAX_REFUSED_SHARE: Final = 0.01
_FEW_PAIRS: Final = 3
"""So many may be left out of any data: an evaluation draws a few rows, among which the rare ones may be more than 1 %."""
_SHOWN_ROLES: Final = 8

_LOG = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""Takes a note on rows that are not used as they are; it quotes nothing."""


def _warn(note: str) -> None:
    _LOG.warning("%s", note)


_last_encoded: WeakKeyDictionary[Tokenizer, tuple[bytes, Examples]] = WeakKeyDictionary()
"""By tokenizer, the examples that `encode_once` encoded last and the hash of the rows that they are made from."""


def encode(rows: Sequence[Row], objective: Objective, tokenizer: Tokenizer, folder: Path | None = None, tell: Tell = _warn) -> Examples:
    """The examples of these rows, in the same order, each of at most `objective.max_length` tokens.

    Many are kept in files on the volume of `folder`, see `SpilledBytes`.

    A row is one example, but for a conversation, which may be several or, if the chat template refuses it, none, and for plain texts.
    A pair of answers is one example of up to twice as many tokens, or none. Which rows the template refuses, and what it leaves out of the
    others, is told: in the log, unless by `tell`.

    Raises:
        TaskFailed: BadData for a label that the run does not have, and if the chat template refuses more than 1 % of the conversations, or
            more than 1 % of the pairs, and more than three, are no example;
            BadModel for a tokenizer without an end-of-sequence token or a usable chat template, or one that does not tell the answers of
            most conversations from the rest.
    """
    if not rows:
        return collect((), _labels_as(objective))
    examples = collect(_examples(rows, objective, tokenizer, tell), _labels_as(objective), folder)
    if not examples:
        raise TaskFailed(
            FailureReason.BAD_DATA, f"none of the {len(rows)} rows has two tokens, of which the first could predict the second"
        )
    return examples


def _examples(rows: Sequence[Row], objective: Objective, tokenizer: Tokenizer, tell: Tell) -> Iterator[Example]:
    match objective:
        case SequenceClassification():
            return _classification(rows, objective, tokenizer)
        case CausalLM():
            return _causal(rows, objective, tokenizer, tell)
        case Seq2SeqLM():
            return _seq2seq(rows, objective, tokenizer)
        case Preference():
            return _preference(rows, objective, tokenizer, tell)


def _labels_as(objective: Objective) -> Labels:
    if isinstance(objective, CausalLM | Preference):
        return Labels.MARKS
    is_number = isinstance(objective, SequenceClassification) and objective.problem == "Regression"
    return Labels.NUMBERS if is_number else Labels.INTEGERS


def encode_once(rows: Sequence[Row], objective: Objective, tokenizer: Tokenizer, folder: Path | None = None) -> Examples:
    """As `encode`, but what was encoded last with this tokenizer is kept: a site trains on the same rows in every round.

    The examples are recognised by the texts of the rows, so a changed file is encoded anew. They are kept no longer than the
    tokenizer, and not at all if they have more than a million tokens (some 8 MB).
    """
    digest = sha256(objective.to_json().encode())
    for row in rows:
        digest.update(json.dumps(row).encode())
    last, examples = _last_encoded.get(tokenizer, (b"", collect((), Labels.INTEGERS)))
    if last != digest.digest():
        examples = encode(rows, objective, tokenizer, folder)
        if examples.tokens <= _MOST_KEPT_TOKENS:
            _last_encoded[tokenizer] = digest.digest(), examples
    return examples


def encode_prompts(rows: Sequence[Row], objective: CausalLM | Seq2SeqLM, tokenizer: Tokenizer, *, max_new_tokens: int) -> list[list[int]]:
    """Token ids of the rows' prompts, truncated as by `encode` for responses of up to `max_new_tokens` tokens.

    Raises:
        TaskFailed: BadModel, as `encode`; BadData, the chat template refuses a prompt.
    """
    if not rows:
        return []
    if isinstance(objective, Seq2SeqLM):
        return [_cut(ids, objective.max_length, tokenizer) for ids in _encode_prompts(rows, objective, tokenizer)]
    keep = prompt_budget(objective.max_length, max_new_tokens)
    if objective.format in CHAT_FORMATS:
        return [_chat_prompt(row, objective, tokenizer, keep) for row in rows]
    return [ids[-keep:] for ids in without_end(_encode_prompts(rows, objective, tokenizer), tokenizer)]


def end_tokens(examples: Sequence[Example], objective: CausalLM | Seq2SeqLM, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's own, and that with which these examples of a chat format end."""
    ends = {tokenizer.eos_token_id}
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS and examples:
        last = next((label for label in reversed(examples[0].labels) if label != IGNORED), None)
        ends |= {int(last)} & {token.number for token in special_tokens_of(tokenizer).values()} if last is not None else set()
    return tuple(sorted(end for end in ends if end is not None))


def _classification(rows: Sequence[Row], objective: SequenceClassification, tokenizer: Tokenizer) -> Iterator[Example]:
    index = {label: position for position, label in enumerate(objective.labels)}
    if objective.problem != "Regression" and any(label not in index for row in rows for label in labels_of(row, objective)):
        # `select_rows` names the rows.
        raise TaskFailed(FailureReason.BAD_DATA, f"a value of column {objective.label!r} is not one of the run's {len(index)} labels")
    options: dict[str, Any] = {"truncation": True, "max_length": objective.max_length, "split_special_tokens": True}
    for piece in _pieces(rows):
        if pair := objective.text_pair:
            options["text_pair"] = [row[pair] for row in piece]
        encoded = tokenizer([row[objective.text] for row in piece], **options)
        segments = encoded.get("token_type_ids") or [[]] * len(piece)
        for ids, types, row in zip(encoded["input_ids"], segments, piece, strict=True):
            yield Example(list(ids), _targets(row, objective, index), _second_segment(types))


def _targets(row: Row, objective: SequenceClassification, index: Mapping[str, int]) -> list[float]:
    """The index of the label; of several labels 1 for each that the row has, and 0 for the others; or the number."""
    if objective.problem == "Regression":
        return [float(row[objective.label])]
    labels = labels_of(row, objective)
    return [index[labels[0]]] if objective.problem == "SingleLabel" else [int(label in labels) for label in index]


def _second_segment(types: Sequence[int]) -> int:
    """Where the second text of a pair begins, for a model that is told; 0 if there is none."""
    return list(types).index(1) if 1 in types else 0


def _causal(rows: Sequence[Row], objective: CausalLM, tokenizer: Tokenizer, tell: Tell) -> Iterator[Example]:
    if objective.format in CHAT_FORMATS:
        return _chat(rows, objective, tokenizer, tell)
    end = require_end_token(tokenizer)
    return _texts(rows, objective, tokenizer, end) if objective.format == "Text" else _pairs(rows, objective, tokenizer, end)


def _pairs(rows: Sequence[Row], objective: CausalLM, tokenizer: Tokenizer, end: int) -> Iterator[Example]:
    for piece in _pieces(rows):
        # The tokenizer adds special tokens only at the start of the prompt, not between prompt and response.
        prompts = without_end(_encode_prompts(piece, objective, tokenizer), tokenizer)
        responses = _encode_responses(piece, objective, tokenizer)
        yield from (_join(prompt, [*response, end], objective.max_length) for prompt, response in zip(prompts, responses, strict=True))


def _texts(rows: Sequence[Row], objective: CausalLM, tokenizer: Tokenizer, end: int) -> Iterator[Example]:
    """Plain texts, of which every token counts: what is longer than a sample goes on in the next one."""
    size = objective.max_length
    open_: list[int] = []
    for piece in _pieces(rows):
        for ids in without_end(encode_plain([row[objective.text] for row in piece], tokenizer), tokenizer):
            open_ += [*ids, end]
            while len(open_) >= size or (open_ and not objective.packing):
                yield from _whole(open_[:size])
                open_ = open_[size:]
    yield from _whole(open_)


def _whole(ids: list[int]) -> Iterator[Example]:
    """A sample all of whose tokens are targets; none of a single token, before which nothing predicts it."""
    if len(ids) > 1:
        yield Example(ids, [IGNORED, *ids[1:]])


def _chat(rows: Sequence[Row], objective: CausalLM, tokenizer: Tokenizer, tell: Tell) -> Iterator[Example]:
    require_chat_template(tokenizer)
    refused, unsaid = Refused(), Unsaid(tokenizer)
    for number, row in enumerate(rows):
        conversation = conversation_of(row, objective)
        unsaid.look_at(conversation)
        try:
            samples = chat.encode_conversation(conversation, tokenizer, objective.max_length)
        except RefusedConversationError as error:
            refused.add(number, error)
            continue
        for sample in samples:
            labels = [token if is_target else IGNORED for token, is_target in zip(sample.ids, sample.is_target, strict=True)]
            yield Example(sample.ids, [IGNORED, *labels[1:]])
    for note in unsaid.notes:
        tell(note)
    if refused.rows:
        _check_refused(rows, refused, objective, tell)


def _check_refused(rows: Sequence[Row], refused: Refused, objective: CausalLM, tell: Tell) -> None:
    """Tell of conversations that the template refuses, and fail if they are more than 1 %."""
    refused.check_template(len(rows))
    first = refused.rows[0]
    roles = ", ".join(conversation_of(rows[first], objective).roles[:_SHOWN_ROLES])
    found = f"the model's chat template {refused.what} {len(refused.rows)} of {len(rows)} conversations"
    which = f"the first is that of good row {first + 1}, whose turns begin with {roles}"
    if len(refused.rows) > _MAX_REFUSED_SHARE * len(rows):
        advice = "give the model a template that takes such turns, or change the conversations (some templates take no system turn)"
        raise TaskFailed(FailureReason.BAD_DATA, f"{found}: {which}: {refused.advice(advice)}")
    tell(f"{found}: {which}. They are left out")


def _preference(rows: Sequence[Row], objective: Preference, tokenizer: Tokenizer, tell: Tell) -> Iterator[Example]:
    alike, refused = Integers(), Refused()
    for number, row in enumerate(rows):
        try:
            pair = encode_pair(row, objective, tokenizer)
        except RefusedConversationError as error:
            refused.add(number, error)
            continue
        if pair is None:
            alike.append(number)
        else:
            yield pair
    refused.check_template(len(rows))
    advice = refused.advice("give the model a template that takes such turns")
    _check_left_out(rows, refused.rows, f"the model's chat template {refused.what}", advice, tell)
    longer = f"raise task.maxLength, which is {objective.max_length}, or leave such rows out of the data"
    _check_left_out(rows, alike, "within task.maxLength both answers are the same in", longer, tell)


def _check_left_out(rows: Sequence[Row], left_out: Sequence[int], found: str, advice: str, tell: Tell) -> None:
    """Tell of pairs that are no example, and fail if they are more than 1 % and more than a few, or all."""
    if not left_out:
        return
    message = f"{found} {len(left_out)} of {len(rows)} pairs, the first of which is good row {left_out[0] + 1}"
    if len(left_out) == len(rows) or len(left_out) > max(_FEW_PAIRS, _MAX_REFUSED_SHARE * len(rows)):
        raise TaskFailed(FailureReason.BAD_DATA, f"{message}: {advice}")
    tell(f"{message}. They are left out")


def _join(prompt: list[int], response: list[int], max_length: int) -> Example:
    prompt = prompt[-prompt_budget(max_length, len(response)) :]
    response = response[: max_length - len(prompt)]
    # No position predicts the first one, so without a prompt the first token has no label.
    labels = [IGNORED] * len(prompt) + response if prompt else [IGNORED, *response[1:]]
    return Example(prompt + response, labels)


def _seq2seq(rows: Sequence[Row], objective: Seq2SeqLM, tokenizer: Tokenizer) -> Iterator[Example]:
    options: dict[str, Any] = {"truncation": True, "max_length": objective.max_length, "split_special_tokens": True}
    for piece in _pieces(rows):
        sources = [_cut(ids, objective.max_length, tokenizer) for ids in _encode_prompts(piece, objective, tokenizer)]
        targets = tokenizer(text_target=[response_of(row, objective) for row in piece], **options)["input_ids"]
        yield from (Example(source, list(target)) for source, target in zip(sources, targets, strict=True))


def _pieces(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    return (rows[first : first + _ROWS_OF_A_PIECE] for first in range(0, len(rows), _ROWS_OF_A_PIECE))


def _encode_prompts(rows: Sequence[Row], objective: CausalLM | Seq2SeqLM, tokenizer: Tokenizer) -> list[list[int]]:
    return encode_filled(rows, lambda row: prompt_of(row, objective), tokenizer)


def _encode_responses(rows: Sequence[Row], objective: CausalLM, tokenizer: Tokenizer) -> list[list[int]]:
    return encode_filled(rows, lambda row: response_of(row, objective), tokenizer, add_special_tokens=False)


def _chat_prompt(row: Row, objective: CausalLM, tokenizer: Tokenizer, budget: int) -> list[int]:
    try:
        return chat.encode_chat_prompt(without_answer(conversation_of(row, objective)), tokenizer, budget)
    except RefusedConversationError:
        message = "the model's chat template cannot render a conversation without its last turn: give the model another template"
        raise TaskFailed(FailureReason.BAD_DATA, message) from None


def _cut(ids: list[int], length: int, tokenizer: Tokenizer) -> list[int]:
    """The first tokens of a text; its end token stays, if it has one."""
    ends = ids[-1:] == [tokenizer.eos_token_id]
    return ids if len(ids) <= length else [*ids[: length - ends], *ids[len(ids) - ends :]]
