"""Conversations: a list of turns, each with a role and a content, from a column of the data to one canonical form.

Two forms are read: `messages` as of OpenAI and TRL (`role`, `content`), and ShareGPT (`from`, `value`). Either is a list, or its JSON as
text, which is how a CSV file has it. The canonical form is the JSON text of the messages that a chat template takes. What a tool answered
may be any value of JSON: it becomes its JSON text, as templates that take objects write them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedpipe_trainer.data.python_text import parse_spelled
from fedpipe_trainer.data.rows import BadValueError

Message = dict[str, Any]

ROLES: Final = ("system", "user", "assistant", "tool")
_MESSAGE_ROLES: Final = {**{role: role for role in ROLES}, "developer": "system", "function": "tool"}
"""OpenAI's: `developer` is what its later models call `system`, `function` what its earlier ones called `tool`."""
_SHARE_GPT_ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool": "tool",
}
_CALLING: Final = frozenset({"function_call", "tool_call"})
"""Speakers whose value is a call of a function, or several: LLaMA-Factory's, and ms-swift's."""
_PARTS: Final = frozenset({"text", "image", "image_url", "audio", "input_audio", "video", "file"})
"""Types of the parts of a content, as OpenAI has them."""
_KEPT: Final = ("name", "tool_call_id", "reasoning_content")
"""Other texts of a message that chat templates read."""
_MOST_TURNS: Final = 1000
_DEEPEST: Final = 64
"""Lists and objects within each other, of the functions and their arguments."""


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


def parse_conversation(messages: str, tools: str = "", system: str = "") -> Conversation:
    """The conversation of a row, from the texts that `read_messages` or `read_share_gpt` and `read_tools` made, and that of its system."""
    return Conversation(with_system(tuple(json.loads(messages)), system), tuple(json.loads(tools or "[]")))


def with_system(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The messages after a turn of the system with this text, if there is one and they do not begin with their own."""
    return messages if not system or messages[0]["role"] == "system" else ({"role": "system", "content": system}, *messages)


def without_answer(conversation: Conversation) -> Conversation:
    """The conversation up to its last turn, which the assistant has to say."""
    return Conversation(conversation.messages[:-1], conversation.tools)


def read_messages(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    """The canonical form of a list of messages with `role` and `content`, up to the assistant's last turn.

    Raises:
        BadValueError: it is no conversation, or no turn is the assistant's.
    """
    return _dump(_up_to_last_answer(_messages(value)))


def read_answered(value: Any) -> str:  # noqa: ANN401 - likewise
    """The canonical form of messages of which the last is an answer of the assistant.

    Raises:
        BadValueError: it is no list of messages, or its last turn is not the assistant's.
    """
    messages = _messages(value)
    if messages[-1]["role"] != "assistant":
        raise BadValueError("its last turn is not the assistant's, so there is nothing to learn from it")
    return _dump(messages)


def read_unanswered(value: Any) -> str:  # noqa: ANN401 - likewise
    """The canonical form of messages that the assistant has to answer.

    Raises:
        BadValueError: it is no list of messages, or its last turn is the assistant's.
    """
    messages = _messages(value)
    if messages[-1]["role"] == "assistant":
        raise BadValueError("its last turn is the assistant's, so there is nothing to answer")
    return _dump(messages)


def read_share_gpt(value: Any) -> str:  # noqa: ANN401 - likewise
    """The canonical form of a list of turns with `from` and `value`, up to the assistant's last turn.

    Raises:
        BadValueError: as `read_messages`.
    """
    return _dump(_up_to_last_answer(_turns(value, "turns", _share_gpt_message)))


def read_tools(value: Any) -> str:  # noqa: ANN401 - likewise
    """The functions that the assistant may call, as JSON text: none for None, an empty list and an empty text.

    A function alone is a list of one. In a list, each may be its JSON as text, since a column of parquet has objects of one form only.

    Raises:
        BadValueError: it is no list of objects.
    """
    if isinstance(value, str):
        value = _parse(value, "functions") if value.strip() else None
    if value in (None, [], {}):
        return "[]"
    listed = value if isinstance(value, list) else [value]
    parsed = [_parse(one, "functions") if isinstance(one, str) else one for one in listed]
    return _dump([_function(one) for one in _objects(parsed, "functions")])


def read_history(value: Any) -> str:  # noqa: ANN401 - likewise
    """The earlier exchanges of an instruction, `[[prompt, response], …]` as LLaMA-Factory has them, as JSON text; none for None and "".

    Raises:
        BadValueError: it is no list of pairs of texts.
    """
    if isinstance(value, str):
        value = _parse(value, "pairs") if value.strip() else None
    if value is None or value == []:
        return "[]"
    pairs = _limited(value) if isinstance(value, list) else []
    if not pairs or not all(isinstance(pair, list) and [type(one) for one in pair] == [str, str] for pair in pairs):
        raise BadValueError("it is not a list of pairs of texts, each a prompt and its response")
    return _dump(pairs)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function in the object that chat templates expect around it, and that LLaMA-Factory's files leave out."""
    if tool.get("function") is not None or not isinstance(tool.get("name"), str):
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key not in {"type", "function"}}}


def text_of(messages: Sequence[Message]) -> str:
    """The messages as lines to read: `role: content`."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _up_to_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """What follows the assistant's last turn is not answered, and so nothing that could be learnt."""
    answers = [at for at, message in enumerate(messages, start=1) if message["role"] == "assistant"]
    if not answers:
        raise BadValueError("no turn is the assistant's, so there is nothing to learn from it")
    return messages[: answers[-1]]


def _messages(value: Any) -> list[Message]:  # noqa: ANN401 - any value of a data file
    return _turns(value, "messages", _message)


def _turns(value: Any, what: str, read: Callable[[int, Mapping[str, Any]], Message]) -> list[Message]:  # noqa: ANN401 - likewise
    """The turns of a conversation, at least one, but for those of a system that says nothing."""
    turns = [read(at, one) for at, one in enumerate(_limited(_objects(value, what)), start=1)]
    said = [turn for turn in turns if turn["role"] != "system" or turn["content"].strip()]
    if not said:
        raise BadValueError("the system says nothing in it, and nobody else does")
    return said


def _limited(turns: list[Any]) -> list[Any]:
    if len(turns) > _MOST_TURNS:
        raise BadValueError(f"it has {len(turns)} turns: at most {_MOST_TURNS} are allowed")
    return turns


def _objects(value: Any, what: str) -> list[Mapping[str, Any]]:  # noqa: ANN401 - any value of a data file
    """The objects of a list, or of its JSON as text."""
    value = _parse(value, what) if isinstance(value, str) else value
    if value is None:
        raise BadValueError("the row has no value in it, or the file no column of this name")
    if not isinstance(value, list) or not value or not all(isinstance(one, Mapping) for one in value):
        raise BadValueError(f"it is not a list of {what}, at least one")
    return value


def _parse(text: str, what: str) -> Any:  # noqa: ANN401 - any value of JSON
    """What a text is the JSON of, or Python's spelling."""
    try:
        return parse_spelled(text)
    except ValueError:
        advice = "write it with json.dumps, or the data as jsonl or parquet"
        raise BadValueError(f"it is a text, but not the JSON of a list of {what}: {advice}") from None


def _role(value: Any, roles: Mapping[str, str]) -> str | None:  # noqa: ANN401 - any value of a data file
    return roles.get(value.lower()) if isinstance(value, str) else None


def _message(at: int, message: Mapping[str, Any]) -> Message:
    role = _role(message.get("role"), _MESSAGE_ROLES)
    if role is None:
        raise BadValueError(f"turn {at} has no role, or another one than {', '.join(ROLES)}")
    calls = _calls(at, message.get("tool_calls")) or _calls(at, message.get("function_call")) if role == "assistant" else []
    is_needed = not calls and role in {"user", "assistant"}
    read = _told if role == "tool" else _content
    made: Message = {"role": role, "content": read(at, message.get("content"), is_needed=is_needed)}
    kept = {key: message[key] for key in _KEPT if isinstance(message.get(key), str) and message[key]}
    return made | kept | ({"tool_calls": calls} if calls else {})


def _told(at: int, content: Any, *, is_needed: bool) -> str:  # noqa: ANN401 - any value of a data file
    """What a tool answered: a text, or the JSON of an object, a list, a number or a boolean."""
    is_parts = isinstance(content, list) and content and all(isinstance(one, Mapping) and _is_part(one) for one in content)
    if isinstance(content, str | None) or is_parts:
        return _content(at, content, is_needed=is_needed)
    return _dump(content)


def _is_part(one: Mapping[str, Any]) -> bool:
    return isinstance(one.get("type"), str) and one["type"] in _PARTS


def _content(at: int, content: Any, *, is_needed: bool) -> str:  # noqa: ANN401 - any value of a data file
    """The text of a turn, whose parts are joined if there are several, as OpenAI has them."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise BadValueError(f"turn {at} has a part that is not text")
        content = "".join(map(str, parts))
    if not isinstance(content, str | None):
        advice = "of a tool's turns alone it may be an object, a list or a number, so write it as text"
        raise BadValueError(f"turn {at} has a content that is not text: {advice}")
    if is_needed and not (content or "").strip():
        raise BadValueError(f"turn {at} has no content")
    return content or ""


def _calls(at: int, value: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - any value of a data file
    """The calls of functions in a turn: a list of them, one, as OpenAI's earlier form has it, or the JSON of either as text."""
    if isinstance(value, str) and value.strip():
        try:
            value = parse_spelled(value)
        except ValueError:
            raise BadValueError(f"turn {at} calls a function, and is not the JSON of its name and arguments") from None
    if not value or (isinstance(value, str) and not value.strip()):
        return []
    if not isinstance(value, Mapping | list):
        raise BadValueError(f"turn {at} calls a function, and is no object with its name and arguments")
    return [_call(at, one) for one in (value if isinstance(value, list) else [value])]


def _call(at: int, call: Any) -> dict[str, Any]:  # noqa: ANN401 - any value of a data file
    """A call of a function, with its arguments as an object: OpenAI writes them as JSON text, and chat templates expect an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadValueError(f"turn {at} calls a function without a name")
    arguments = function.get("arguments") or function.get("parameters") or {}  # the latter as Llama 3 spells a call
    if isinstance(arguments, str):
        try:
            arguments = parse_spelled(arguments)
        except ValueError:
            raise BadValueError(f"turn {at} calls a function with arguments that are not JSON") from None
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _share_gpt_message(at: int, turn: Mapping[str, Any]) -> Message:
    speaker = turn.get("from")
    role = _role(speaker, _SHARE_GPT_ROLES)
    if role is None:
        raise BadValueError(f"turn {at} names no sender, or another one than {', '.join(_SHARE_GPT_ROLES)}")
    if str(speaker).lower() not in _CALLING:
        return _message(at, {**turn, "role": role, "content": turn.get("value")})
    if not (calls := _calls(at, turn.get("value"))):
        raise BadValueError(f"turn {at} calls a function, and is not the JSON of its name and arguments")
    return {"role": role, "content": "", "tool_calls": calls}


def _dump(value: object) -> str:
    _check_depth(value, _DEEPEST)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise BadValueError("it has a value that JSON does not have") from None


def _check_depth(value: object, left: int) -> None:
    """Whoever renders, hides or reads it again does so by recursion."""
    if not isinstance(value, Mapping | list | tuple):
        return
    if not left:
        raise BadValueError(f"it has more than {_DEEPEST} lists and objects within each other")
    for one in value.values() if isinstance(value, Mapping) else value:
        _check_depth(one, left - 1)
