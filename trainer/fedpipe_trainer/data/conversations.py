"""Conversations: a list of turns, each with a role and a content, from a column of the data to one canonical form.

Two forms are read: `messages` as of OpenAI and TRL (`role`, `content`), and ShareGPT (`from`, `value`). Either is a list, or its JSON as
text, which is how a CSV file has it. The canonical form is the JSON text of the messages that a chat template takes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedpipe_trainer.data.rows import BadValueError

Message = dict[str, Any]

ROLES: Final = ("system", "user", "assistant", "tool")
_SHARE_GPT_ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
_KEPT: Final = ("name", "tool_call_id", "reasoning_content")
"""Other texts of a message that chat templates read."""
_MOST_TURNS: Final = 1000


@dataclass(frozen=True)
class Conversation:
    """A conversation, and the functions that the assistant may call. The last turn of a sample is the assistant's."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Who speaks, turn by turn."""
        return tuple(message["role"] for message in self.messages)

    @property
    def assistant_turns(self) -> tuple[int, ...]:
        """Indices of the assistant's turns."""
        return tuple(at for at, role in enumerate(self.roles) if role == "assistant")


def parse_conversation(messages: str, tools: str = "") -> Conversation:
    """The conversation of a row, from the texts that `read_messages` or `read_share_gpt` and `read_tools` made."""
    return Conversation(tuple(json.loads(messages)), tuple(json.loads(tools or "[]")))


def without_answer(conversation: Conversation) -> Conversation:
    """The conversation up to its last turn, which the assistant has to say."""
    return Conversation(conversation.messages[:-1], conversation.tools)


def read_messages(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    """The canonical form of a list of messages with `role` and `content`.

    Raises:
        BadValueError: it is no conversation, or its last turn is not the assistant's.
    """
    return _canonical([_message(at, one) for at, one in enumerate(_objects(value, "messages"), start=1)])


def read_unanswered(value: Any) -> str:  # noqa: ANN401 - likewise
    """The canonical form of messages that the assistant has to answer.

    Raises:
        BadValueError: it is no list of messages, or its last turn is the assistant's.
    """
    messages = [_message(at, one) for at, one in enumerate(_objects(value, "messages"), start=1)]
    if messages[-1]["role"] == "assistant":
        raise BadValueError("its last turn is the assistant's, so there is nothing to answer")
    return _dump(_limited(messages))


def read_share_gpt(value: Any) -> str:  # noqa: ANN401 - likewise
    """The canonical form of a list of turns with `from` and `value`.

    Raises:
        BadValueError: as `read_messages`.
    """
    return _canonical([_share_gpt_message(at, one) for at, one in enumerate(_objects(value, "turns"), start=1)])


def read_tools(value: Any) -> str:  # noqa: ANN401 - likewise
    """The functions that the assistant may call, as JSON text; an empty list for None and for an empty text.

    Raises:
        BadValueError: it is no list of objects.
    """
    if value is None or value == "":
        return "[]"
    return _dump(_objects(value, "functions"))


def text_of(messages: Sequence[Message]) -> str:
    """The messages as lines to read: `role: content`."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _canonical(messages: Sequence[Message]) -> str:
    if not messages or messages[-1]["role"] != "assistant":
        raise BadValueError("its last turn is not the assistant's, so there is nothing to learn from it")
    return _dump(_limited(messages))


def _limited(messages: Sequence[Message]) -> Sequence[Message]:
    if len(messages) > _MOST_TURNS:
        raise BadValueError(f"it has {len(messages)} turns: at most {_MOST_TURNS} are allowed")
    return messages


def _objects(value: Any, what: str) -> list[Mapping[str, Any]]:  # noqa: ANN401 - any value of a data file
    """The objects of a list, or of its JSON as text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadValueError(f"it is a text, but not the JSON of a list of {what}") from None
    if value is None:
        raise BadValueError("the row has no value in it, or the file no column of this name")
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) for one in value):
        raise BadValueError(f"it is not a list of {what}, at least one")
    return value


def _message(at: int, message: Mapping[str, Any]) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise BadValueError(f"turn {at} has no role, or another one than {', '.join(ROLES)}")
    calls = [_call(at, call) for call in message.get("tool_calls") or ()] if role == "assistant" else []
    made: Message = {"role": role, "content": _content(at, message.get("content"), is_needed=not calls and role != "tool")}
    kept = {key: message[key] for key in _KEPT if isinstance(message.get(key), str) and message[key]}
    return made | kept | ({"tool_calls": calls} if calls else {})


def _content(at: int, content: Any, *, is_needed: bool) -> str:  # noqa: ANN401 - any value of a data file
    """The text of a turn, whose parts are joined if there are several, as OpenAI has them."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise BadValueError(f"turn {at} has a part that is not text")
        content = "".join(map(str, parts))
    if not isinstance(content, str | None):
        raise BadValueError(f"turn {at} has a content that is not text")
    if is_needed and not (content or "").strip():
        raise BadValueError(f"turn {at} has no content")
    return content or ""


def _call(at: int, call: Any) -> dict[str, Any]:  # noqa: ANN401 - any value of a data file
    """A call of a function, with its arguments as an object: OpenAI writes them as JSON text, and chat templates expect an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadValueError(f"turn {at} calls a function without a name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise BadValueError(f"turn {at} calls a function with arguments that are not JSON") from None
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _share_gpt_message(at: int, turn: Mapping[str, Any]) -> Message:
    speaker = turn.get("from")
    role = _SHARE_GPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise BadValueError(f"turn {at} names no sender, or another one than {', '.join(_SHARE_GPT_ROLES)}")
    if speaker != "function_call":
        return _message(at, {"role": role, "content": turn.get("value")})
    return _message(at, {"role": role, "tool_calls": _calls(at, turn.get("value"))})


def _calls(at: int, value: Any) -> list[Any]:  # noqa: ANN401 - any value of a data file
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        calls = None
    if not isinstance(calls, Mapping | list) or not calls:
        raise BadValueError(f"turn {at} calls a function, and is not the JSON of its name and arguments")
    return calls if isinstance(calls, list) else [calls]


def _dump(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise BadValueError("it has a value that JSON does not have") from None
