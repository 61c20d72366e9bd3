"""Encodes conversations as token ids: rendered by the chat template, tokenised, and truncated by whole turns.

A special token in the text of a turn is text (`special_tokens`). Conversations without any, nearly all, are tokenised as a whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fedpipe_trainer.contract import prompt_budget
from fedpipe_trainer.data.chat_template import RefusedConversationError, Rendering, Span, render_prompt, render_samples
from fedpipe_trainer.data.conversations import Conversation, Message
from fedpipe_trainer.data.special_tokens import StandIns, special_tokens_of
from fedpipe_trainer.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TargetTokens:
    """Token ids, and of each whether it is a target."""

    ids: list[int]
    is_target: list[bool]


def encode_conversation(conversation: Conversation, tokenizer: Tokenizer, max_length: int) -> list[TargetTokens]:
    """The training samples of a conversation, at least one, each with a target and of at most `max_length` tokens.

    Of a long conversation the first turns are kept, as many whole turns of the assistant as fit. If not even the first fits, its prompt is
    cut at its beginning and the answer at its end, as those of other formats are.

    Raises:
        RefusedConversationError: the template cannot render it, or nothing of it is a target; or as `render_samples`.
        TaskFailed: BadModel, as `render_samples`.
    """
    plain = _PlainConversation(conversation, tokenizer)
    samples = [plain.encode(rendering) for rendering in render_samples(tokenizer, plain.conversation)]
    kept = [_truncate(sample, max_length) for sample in samples if any(sample.is_target[1:])]
    if not kept:
        raise RefusedConversationError
    return kept


def encode_answer(conversation: Conversation, first: int, tokenizer: Tokenizer) -> TargetTokens:
    """A whole conversation, in which the assistant's turns from the turn `first` on are targets; nothing is cut.

    Of a template that renders a turn in another way once others follow it, only the last turn is a target.

    Raises:
        RefusedConversationError: as `render_samples`.
        TaskFailed: BadModel, as `render_samples`.
    """
    plain = _PlainConversation(conversation, tokenizer)
    rendering = render_samples(tokenizer, plain.conversation)[-1]
    turns = conversation.assistant_turns[-len(rendering.targets) :]
    targets = tuple(span for span, turn in zip(rendering.targets, turns, strict=True) if turn >= first)
    return plain.encode(Rendering(rendering.text, targets))


def encode_chat_prompt(conversation: Conversation, tokenizer: Tokenizer, budget: int) -> list[int]:
    """The token ids of a conversation that the assistant has to answer, with the beginning of the answer: at most `budget`.

    Of a long one the oldest turns are left out, but for the system's; of what is still too long, the beginning.

    Raises:
        RefusedConversationError: the template cannot render it.
    """
    plain = _PlainConversation(conversation, tokenizer)
    messages = plain.conversation.messages
    ids = plain.encode_text(render_prompt(tokenizer, plain.conversation, messages))
    while len(ids) > budget and (shorter := _without_oldest_exchange(messages)) is not None:
        messages = shorter
        ids = plain.encode_text(render_prompt(tokenizer, plain.conversation, messages))
    return ids[-budget:]


def _without_oldest_exchange(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """The messages from the second turn of a user on, after those of the system; None if there is no such turn."""
    users = [at for at, message in enumerate(messages) if message["role"] == "user"]
    if len(users) < 2:  # noqa: PLR2004 - one is needed
        return None
    system = [message for message in messages[: users[0]] if message["role"] == "system"]
    return (*system, *messages[users[1] :])


def _truncate(sample: TargetTokens, max_length: int) -> TargetTokens:
    if len(sample.ids) <= max_length:
        return sample
    # Targets end where a turn of the assistant does.
    ends = [at for at, (this, after) in enumerate(pairwise([*sample.is_target, False]), start=1) if this and not after]
    fitting = [end for end in ends if end <= max_length]
    if fitting:
        return TargetTokens(sample.ids[: fitting[-1]], sample.is_target[: fitting[-1]])
    first = sample.is_target.index(True)
    skipped = max(0, first - prompt_budget(max_length, ends[0] - first))
    kept = slice(skipped, min(ends[0], skipped + max_length))
    return TargetTokens(sample.ids[kept], sample.is_target[kept])


class _PlainConversation:
    """A conversation in whose texts characters stand for special tokens, and its tokenisation."""

    def __init__(self, conversation: Conversation, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        said = [{key: value for key, value in message.items() if key != "role"} for message in conversation.messages]
        self._stand_ins = StandIns(list(_texts([*said, *conversation.tools])), tokenizer)
        self.conversation = conversation
        if self._stand_ins:
            messages, tools = (_map_texts(list(part), self._stand_ins.hide) for part in (said, conversation.tools))
            # The template compares roles.
            roles = [{"role": role} for role in conversation.roles]
            self.conversation = Conversation(tuple(role | one for role, one in zip(roles, messages, strict=True)), tuple(tools))

    def encode(self, rendering: Rendering) -> TargetTokens:
        if self._stand_ins or not self._tokenizer.is_fast:
            return self._encode_in_parts(rendering)
        encoded = self._tokenizer([rendering.text], add_special_tokens=False, return_offsets_mapping=True)
        ids = list(encoded["input_ids"][0])
        return TargetTokens(ids, _within(self._own_characters(ids, encoded["offset_mapping"][0], rendering.text), rendering.targets))

    def encode_text(self, text: str) -> list[int]:
        if self._stand_ins:
            return self._stand_ins.encode(text)
        return list(self._tokenizer([text], add_special_tokens=False)["input_ids"][0])

    def _encode_in_parts(self, rendering: Rendering) -> TargetTokens:
        """As `encode`, but each part between the ends of targets by itself."""
        ends = sorted({0, len(rendering.text), *(at for span in rendering.targets for at in span)})
        spans = list(pairwise(ends))
        parts = self._stand_ins.encode_parts([rendering.text[first:end] for first, end in spans])
        are_targets = [any(a <= first and end <= b for a, b in rendering.targets) for first, end in spans]
        is_target = [one for one, part in zip(are_targets, parts, strict=True) for _ in part]
        return TargetTokens([token for part in parts for token in part], is_target)

    def _own_characters(self, ids: Sequence[int], offsets: Sequence[Span], text: str) -> Sequence[Span]:
        """The characters of each token, without the white space that a special token takes with it: it may be no part of a target."""
        special = special_tokens_of(self._tokenizer).values()
        taking = {token.number for token in special if token.takes_before or token.takes_after}
        if not taking:
            return offsets
        return [_stripped(text, span) if number in taking else span for number, span in zip(ids, offsets, strict=True)]


def _stripped(text: str, span: Span) -> Span:
    first, end = span
    token = text[first:end]
    return first + len(token) - len(token.lstrip()), end - len(token) + len(token.rstrip())


def _within(offsets: Sequence[Span], targets: Sequence[Span]) -> list[bool]:
    """Of each token, in order, whether it is in one of the targets, which are in order, too."""
    found, spans = [], iter(targets)
    first, last = next(spans, (0, 0))
    for start, end in offsets:
        while start >= last and (first, last) != (0, 0):
            first, last = next(spans, (0, 0))
        found.append(first <= start < end <= last)
    return found


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - any value of JSON
    """The texts in a value, among them the keys: the names of a function's arguments are of the data, too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for one in (*value, *value.values()) if isinstance(value, Mapping) else value:
            yield from _texts(one)


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401 - any value of JSON
    """The value with each text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _map_texts(one, change) for key, one in value.items()}
    return [_map_texts(one, change) for one in value] if isinstance(value, list) else value
