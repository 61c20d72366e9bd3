"""Renders conversations by a tokenizer's chat template, and says which characters are the assistant's.

A chat template is a program that comes with a model: it is run in transformers' sandbox, and its output is bounded. Its messages are
not told, since it may write the site's data into them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from jinja2 import Template, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from transformers.utils.chat_template_utils import (
    _cached_compile_jinja_template,  # transformers' sandbox: its public functions collect any output before they return it
)

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.data.conversations import Conversation, Message
from fedpipe_trainer.data.special_tokens import special_tokens_of
from fedpipe_trainer.data.tokenizer import Tokenizer
from fedpipe_trainer.errors import TaskFailed

_MOST_CHARACTERS: Final = 16 * 2**20
"""Of a rendered conversation."""
_CHARACTERS_OF_A_TEMPLATE: Final = 2**20
_OWN_TEMPLATE: Final = "give the model a template with {% generation %}, or use task.format Template with prompt and response"

Span = tuple[int, int]
"""The first character and the one after the last."""


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation, or the beginning of one."""

    text: str
    targets: tuple[Span, ...]
    """The assistant's characters that count in the loss, in order."""


class RefusedConversationError(Exception):
    """The template cannot render this conversation."""


class UntoldAnswerError(RefusedConversationError):
    """The template renders it, but not so that its answers can be told from the rest. The message says why, and what to do."""


class UnsaidCallsError(RefusedConversationError):
    """It renders an answer that only calls functions, and nothing of its calls: the model would learn to say nothing."""


def require_chat_template(tokenizer: Tokenizer) -> None:
    """Check that there is a template, that it can be compiled, and that it does nothing forbidden as such.

    Raises:
        TaskFailed: BadModel.
    """
    if not tokenizer.chat_template:
        found = "the tokenizer has no chat template, and task.format has conversations"
        advice = "use a model that was trained for chat, add chat_template.jinja to the model's folder, or use task.format Template"
        raise TaskFailed(FailureReason.BAD_MODEL, f"{found}: {advice}")
    _compile(tokenizer, ())


def render_samples(tokenizer: Tokenizer, conversation: Conversation) -> list[Rendering]:
    """The conversation as training samples: one whose targets are all turns of the assistant, or one for each of these turns.

    Which characters are the assistant's is what `{% generation %}` in the template says, or follows from rendering the conversation up to
    each of its turns. Some templates render a turn in another way once others follow it (they leave out its reasoning, for example): then
    each turn is a sample of its own, with all before it rendered as it is when the model has to answer.

    Raises:
        RefusedConversationError: the template cannot render it.
        UntoldAnswerError: it does not tell the assistant's turns of this conversation from the rest.
        UnsaidCallsError: it renders nothing of the first turn that only calls functions. One more rendering tells.
        TaskFailed: BadModel, as `require_chat_template`.
    """
    template = _compile(tokenizer, conversation.tools)
    if template.marks_targets:
        rendering = template.render(conversation.messages)
        _check_calls(template, conversation.messages, _first_mere_call(conversation.messages), rendering.text)
        _check_targets(rendering, [conversation.messages[at] for at in conversation.assistant_turns])
        return [rendering]
    special = tuple(special_tokens_of(tokenizer))
    mere_call = _first_mere_call(conversation.messages)
    turns = [_turn(template, conversation.messages[: at + 1], mere_call, special) for at in conversation.assistant_turns]
    whole = turns[-1].text
    if all(whole.startswith(turn.text) for turn in turns):
        return [Rendering(whole, tuple(turn.targets[0] for turn in turns))]
    return turns


def render_prompt(tokenizer: Tokenizer, conversation: Conversation, messages: Sequence[Message]) -> str:
    """These messages of a conversation, up to where the assistant's answer begins.

    Raises:
        RefusedConversationError: the template cannot render them.
        TaskFailed: BadModel, as `require_chat_template`.
    """
    return _compile(tokenizer, conversation.tools).render(messages, asks=True).text


def is_rendered(tokenizer: Tokenizer, conversation: Conversation, without: Conversation) -> bool:
    """Whether the template renders anything of what a conversation has and the same one `without` it has not.

    So it does if it refuses one of the two.

    Raises:
        TaskFailed: BadModel, as `require_chat_template`.
    """
    template = _compile(tokenizer, conversation.tools)  # of several, the one for these functions
    other = replace(template, variables={**template.variables, "tools": list(without.tools) or None})
    try:
        return template.render(conversation.messages).text != other.render(without.messages).text
    except RefusedConversationError:
        return True


def without_calls(message: Message) -> Message:
    """A turn that calls no function."""
    return {key: value for key, value in message.items() if key != "tool_calls"}


def _first_mere_call(messages: Sequence[Message]) -> int | None:
    """The first turn that says nothing but calls of functions; None: there is none."""
    return next((at for at, one in enumerate(messages) if one.get("tool_calls") and not one["content"].strip()), None)


def _check_calls(template: "_ChatTemplate", messages: Sequence[Message], call: int | None, text: str) -> None:
    """Check that what these messages are rendered as is another text without the calls of the turn `call`."""
    if call is None:
        return
    try:
        silent = template.render([*messages[:call], without_calls(messages[call]), *messages[call + 1 :]]).text
    except RefusedConversationError:  # it wants a turn to have calls or a content, so it reads both
        return
    if silent == text:
        raise UnsaidCallsError


def _turn(template: "_ChatTemplate", messages: Sequence[Message], mere_call: int | None, special: tuple[str, ...]) -> Rendering:
    """A conversation up to a turn of the assistant, its last one, which is the target."""
    before = template.render(messages[:-1], asks=True).text
    text = template.render(messages).text
    if mere_call == len(messages) - 1:
        _check_calls(template, messages, mere_call, text)
    if not text.startswith(before):
        found = "the tokenizer's chat template does not tell the assistant's turns from the rest"
        reason = "it has no {% generation %}, and what it renders before an answer is not how it renders the answer"
        raise UntoldAnswerError(f"{found}: {reason}: {_OWN_TEMPLATE}")
    # What a template writes between two turns is not the assistant's: an answer ends with its token.
    ended = text.rstrip()
    end = len(ended) if ended.endswith(special) else len(text)
    rendering = Rendering(text, ((len(before), end),))
    _check_targets(rendering, messages[-1:])
    return rendering


def _check_targets(rendering: Rendering, turns: Sequence[Message]) -> None:
    """Each target has the end of its turn's content: a template that marks something else would train that.

    It may be the conversation's fault: Qwen's templates take what stands before a `</think>` for reasoning, wherever it was written.
    """
    if len(rendering.targets) == len(turns) and all(
        _last_line(turn["content"]) in rendering.text[first:end] and rendering.text[first:end].strip()
        for (first, end), turn in zip(rendering.targets, turns, strict=True)
    ):
        return
    found = f"the tokenizer's chat template marks {len(rendering.targets)} parts of a conversation with {len(turns)} turns of the assistant"
    reason = "they are not what the assistant says"
    raise UntoldAnswerError(f"{found}, or {reason}: {_OWN_TEMPLATE}")


def _last_line(content: str) -> str:
    return content.strip().rpartition("\n")[2].strip()


@dataclass(frozen=True)
class _ChatTemplate:
    compiled: Template
    marks_targets: bool
    variables: dict[str, Any]

    def render(self, messages: Sequence[Message], *, asks: bool = False) -> Rendering:
        """Render messages. With `asks`, what begins an answer of the assistant follows."""
        blocks: list[str] = []
        spans: list[Span] = []
        length = 0
        inputs = {"messages": [dict(message) for message in messages], "add_generation_prompt": asks, **self.variables}
        with _refusals(), self.compiled.environment.activate_tracker(blocks, spans):  # type: ignore[attr-defined]  # transformers' extension
            for block in self.compiled.generate(**inputs):
                blocks.append(block)
                length += len(block)
                if length > _MOST_CHARACTERS:
                    raise RefusedConversationError
        return Rendering("".join(blocks), tuple(spans))


@contextmanager
def _refusals() -> Iterator[None]:
    """What a template raises, as ours."""
    try:
        yield
    except SecurityError:
        message = "the tokenizer's chat template does what the sandbox of templates forbids: use a model whose template is safe"
        raise TaskFailed(FailureReason.BAD_MODEL, message) from None
    except (RefusedConversationError, TaskFailed, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - a template is a program, and may raise anything; its message may quote the data
        raise RefusedConversationError from None


def _compile(tokenizer: Tokenizer, tools: Sequence[dict[str, Any]]) -> _ChatTemplate:
    functions = list(tools) or None
    source = tokenizer.get_chat_template(tools=functions)
    compiled = _compiled(source)
    return _ChatTemplate(compiled, "endgeneration" in source, {**tokenizer.special_tokens_map, "tools": functions, "documents": None})


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    if len(source) > _CHARACTERS_OF_A_TEMPLATE:
        raise _invalid(f"it has {len(source)} characters, and at most {_CHARACTERS_OF_A_TEMPLATE} are allowed")
    environment = _cached_compile_jinja_template("").environment  # of its own
    # An expression such as 'a' * 10**10 fills the memory before any output is counted.
    environment.intercepted_binops = frozenset({"*", "**"})
    environment.binop_table = environment.binop_table | {"*": _multiply, "**": _power}
    try:
        template: Template = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise _invalid(f"its line {error.lineno} is not Jinja") from None
    except RecursionError:
        raise _invalid("it is nested too deeply") from None
    return template


def _invalid(reason: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_MODEL, f"the tokenizer's chat template cannot be used: {reason}: correct it")


def _multiply(left: Any, right: Any) -> Any:  # noqa: ANN401 - any values of a template
    for one, other in ((left, right), (right, left)):
        if isinstance(other, int) and hasattr(one, "__len__") and len(one) * other > _MOST_CHARACTERS:
            raise SecurityError
    return left * right


def _power(left: Any, right: Any) -> Any:  # noqa: ANN401 - any values of a template
    if abs(right) > 64 or abs(left) > 2**64:  # noqa: PLR2004 - no template computes with more
        raise SecurityError
    return left**right
