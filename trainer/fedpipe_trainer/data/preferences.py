"""Rows of two answers to one prompt, of which one was chosen: how their columns are read, and what they are as token ids.

The forms are those of TRL. The prompt is a column of its own, or what both answers begin with. Prompt and answers are texts, or
lists of messages, which the tokenizer's chat template renders; each column may also hold the JSON of such a list as text. What both
answers begin with has the same probability in both and changes no loss, so it does not matter where exactly a prompt ends.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fedpipe_trainer.contract import Preference, optional_columns, prompt_budget
from fedpipe_trainer.data.chat import TargetTokens, encode_answer
from fedpipe_trainer.data.chat_template import RefusedConversationError, require_chat_template
from fedpipe_trainer.data.conversations import Conversation, Message, read_answered, read_unanswered, text_of, with_system
from fedpipe_trainer.data.examples import IGNORED, Example
from fedpipe_trainer.data.pairs import join_answers
from fedpipe_trainer.data.python_text import parse_spelled
from fedpipe_trainer.data.rows import Row
from fedpipe_trainer.data.special_tokens import encode_plain, require_end_token, without_end
from fedpipe_trainer.data.tokenizer import Tokenizer
from fedpipe_trainer.data.values import BadValueError, ValueReader

_NO_PROMPT = "the two answers begin differently, so they have no prompt in common: name the column with the prompt in task.promptColumn"


@dataclass(frozen=True)
class TextPair:
    """Two answers that are texts."""

    prompt: str | None
    """None: the answers begin with it."""
    chosen: str
    rejected: str


@dataclass(frozen=True)
class ConversationPair:
    """Two conversations that are the same up to the turn `first`, which is the assistant's in both."""

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    first: int


def preference_readers(objective: Preference) -> Mapping[str, ValueReader]:
    """How the columns become the JSON of a text or of a list of messages."""
    readers: dict[str, ValueReader] = {objective.chosen_column: _read_answer, objective.rejected_column: _read_answer}
    return readers | ({objective.prompt_column: _read_prompt} if objective.prompt_column else {})


def check_pair(row: Row, objective: Preference) -> None:
    """Check that the columns of a row fit together.

    Raises:
        BadValueError: they do not.
    """
    pair_of(row, objective)


def is_tie(row: Row, objective: Preference) -> bool:
    """Whether both answers are the same, so that nothing was chosen."""
    return row[objective.chosen_column] == row[objective.rejected_column]


def pair_of(row: Row, objective: Preference) -> TextPair | ConversationPair:
    """The pair of a row.

    Raises:
        BadValueError: its columns do not fit together.
    """
    chosen, rejected = json.loads(row[objective.chosen_column]), json.loads(row[objective.rejected_column])
    prompt = json.loads(row[objective.prompt_column]) if objective.prompt_column else None
    system = row.get("system", "") if "system" in optional_columns(objective) else ""
    if isinstance(chosen, str) is not isinstance(rejected, str):
        raise BadValueError("one of the answers is a text and the other a list of messages")
    if isinstance(chosen, str) and not isinstance(prompt, list):
        if prompt is None and not chosen[: _common(chosen, rejected)].strip():
            raise BadValueError(_NO_PROMPT)
        return _after(system, TextPair(prompt, chosen, rejected))
    one, other = _with_prompt(prompt, chosen), _with_prompt(prompt, rejected)
    first = min(_common(one, other), len(one) - 1, len(other) - 1)  # the last turn of neither is common to both
    if {one[first]["role"], other[first]["role"]} != {"assistant"}:
        raise BadValueError("the two answers differ in a turn that is not the assistant's" if first else _NO_PROMPT)
    if not first:
        raise BadValueError("there is no turn before the answers: name the column with the prompt in task.promptColumn")
    added = len(with_system(one, system)) - len(one)  # both begin with the same turn
    return ConversationPair(with_system(one, system), with_system(other, system), first + added)


def _after(system: str, pair: TextPair) -> TextPair:
    """The pair with the system's text before its prompt, or before what both answers begin with."""
    if not system:
        return pair
    before = f"{system}\n\n"
    if pair.prompt is not None:
        return replace(pair, prompt=before + pair.prompt)
    return replace(pair, chosen=before + pair.chosen, rejected=before + pair.rejected)


def shown_pair(row: Row, objective: Preference) -> tuple[str, str, str]:
    """Prompt, chosen and rejected answer of a row, to read."""
    pair = pair_of(row, objective)
    if isinstance(pair, ConversationPair):
        answers = (text_of(one[pair.first :]) for one in (pair.chosen, pair.rejected))
        chosen, rejected = (answer.removeprefix("assistant: ") for answer in answers)
        return text_of(pair.chosen[: pair.first]), chosen, rejected
    if pair.prompt is not None:
        return pair.prompt, pair.chosen, pair.rejected
    length = _common(pair.chosen, pair.rejected)
    length = pair.chosen.rfind(" ", 0, length) + 1 or length  # words are not cut in two
    return pair.chosen[:length], pair.chosen[length:], pair.rejected[length:]


def encode_pair(row: Row, objective: Preference, tokenizer: Tokenizer) -> Example | None:
    """The pair as a sample (`pairs`), each answer with its prompt of at most `max_length` tokens.

    Both answers keep the same end of the prompt: what the longer of them leaves of `max_length`, but at least half of it. None: the answers
    differ only beyond that length, or there is nothing before their only token that could predict it.

    Raises:
        RefusedConversationError: the chat template cannot render it.
        TaskFailed: BadModel, as `encode_conversation`, or the tokenizer has no end token.
    """
    pair = pair_of(row, objective)
    if isinstance(pair, ConversationPair):
        require_chat_template(tokenizer)
        conversations = (Conversation(messages) for messages in (pair.chosen, pair.rejected))
        sides = [encode_answer(one, pair.first, tokenizer) for one in conversations]
    else:
        sides = _encode_texts(pair, tokenizer)
    if not all(any(side.is_target) for side in sides):
        raise RefusedConversationError
    chosen, rejected = _cut(sides, objective.max_length)
    differ = chosen.input_ids != rejected.input_ids
    return join_answers(chosen, rejected) if differ and chosen.input_ids and rejected.input_ids else None


def is_sample(row: Row, objective: Preference, tokenizer: Tokenizer) -> bool:
    """Whether the row is a sample, or is left out because of the model's template or the length."""
    try:
        return encode_pair(row, objective, tokenizer) is not None
    except RefusedConversationError:
        return False


def _encode_texts(pair: TextPair, tokenizer: Tokenizer) -> list[TargetTokens]:
    """Both texts with the prompt before them and an end token behind them, of which the model learns where an answer ends."""
    end = require_end_token(tokenizer)
    answers = [pair.chosen, pair.rejected]
    if pair.prompt is None:
        whole = [[*ids, end] for ids in without_end(encode_plain(answers, tokenizer), tokenizer)]
        length = _common(*whole)
    else:
        # The tokenizer adds special tokens only at the start of the prompt, not between prompt and answer.
        [prompt] = without_end(encode_plain([pair.prompt], tokenizer), tokenizer)
        whole = [[*prompt, *ids, end] for ids in encode_plain(answers, tokenizer, add_special_tokens=False)]
        length = len(prompt)
    return [TargetTokens(ids, [at >= length for at in range(len(ids))]) for ids in whole]


def _cut(sides: Sequence[TargetTokens], max_length: int) -> list[Example]:
    starts = [side.is_target.index(True) for side in sides]
    kept = prompt_budget(max_length, max(len(side.ids) - start for side, start in zip(sides, starts, strict=True)))
    return [_part(side, max(0, start - kept), max_length) for side, start in zip(sides, starts, strict=True)]


def _part(side: TargetTokens, first: int, length: int) -> Example:
    """So many tokens from this one on, up to the last target: an empty sample without any."""
    ids, is_target = side.ids[first : first + length], side.is_target[first : first + length]
    is_target[0] = False  # no position predicts the first one
    end = len(ids) - is_target[::-1].index(True) if any(is_target) else 0
    return Example(ids[:end], [token if one else IGNORED for token, one in zip(ids[:end], is_target[:end], strict=True)])


def _with_prompt(prompt: str | list[Message] | None, answer: str | list[Message]) -> tuple[Message, ...]:
    """The whole conversation of an answer, which may have its prompt already."""
    turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
    if prompt is None or turns[0]["role"] != "assistant":
        return tuple(turns)
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return (*asked, *turns)


def _common(one: Sequence[object], other: Sequence[object]) -> int:
    """With how many characters, turns or tokens both begin."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _read_answer(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    messages = _messages_in(value)
    return json.dumps(_text(value), ensure_ascii=False) if messages is None else read_answered(messages)


def _read_prompt(value: Any) -> str:  # noqa: ANN401 - likewise
    messages = _messages_in(value)
    return json.dumps(_text(value), ensure_ascii=False) if messages is None else read_unanswered(messages)


def _messages_in(value: Any) -> list[Any] | None:  # noqa: ANN401 - likewise
    """The messages that a value is, as a list or as the JSON of one; None: it is none. A text may begin with a bracket."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):
            found = parse_spelled(value)
            messages = [found] if isinstance(found, dict) else found
            return messages if isinstance(messages, list) and messages and all(_has_role(one) for one in messages) else None
    if isinstance(value, Mapping):
        return [value]
    return value if isinstance(value, list) else None


def _has_role(message: object) -> bool:
    return isinstance(message, Mapping) and "role" in message


def _text(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    if not isinstance(value, str):
        raise BadValueError("it is neither a text nor a list of messages")
    if not value.strip():
        raise BadValueError("it is empty")
    return value
