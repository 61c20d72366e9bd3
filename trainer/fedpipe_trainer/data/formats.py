"""The formats of the data of a language model: which columns a row has, how they are read, and what its input and output are."""

import json
from collections.abc import Mapping
from typing import Any, Final

from fedpipe_trainer.contract import CHAT_FORMATS, CausalLM, Objective, Seq2SeqLM
from fedpipe_trainer.data.conversations import (
    Conversation,
    parse_conversation,
    read_messages,
    read_share_gpt,
    read_tools,
    text_of,
    without_answer,
)
from fedpipe_trainer.data.rows import BadValueError, ValueReader
from fedpipe_trainer.data.templates import fill

# The two prompts of the Stanford Alpaca project, on which models of this format were trained; axolotl's `alpaca` is the same.
_ALPACA_WITH_INPUT: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_WITHOUT_INPUT: Final = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def value_readers(objective: Objective) -> Mapping[str, ValueReader]:
    """By column whose value is not simply a text: how it is read."""
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        readers = {objective.conversation_column: read_messages if objective.format == "Messages" else read_share_gpt}
        return readers | ({objective.tools: read_tools} if objective.tools else {})
    if isinstance(objective, CausalLM | Seq2SeqLM) and objective.format == "Alpaca":
        return {"input": _optional_text}
    return {}


def prompt_of(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """The input of a row of a format that has two texts.

    Raises:
        TaskFailed: BadTask, as `fill`.
    """
    if objective.format == "Alpaca":
        return fill(_ALPACA_WITH_INPUT if row["input"] else _ALPACA_WITHOUT_INPUT, row)
    return row["prompt"] if objective.format == "PromptCompletion" else fill(objective.prompt or "", row)


def response_of(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """The output of a row of a format that has two texts.

    Raises:
        TaskFailed: BadTask, as `fill`.
    """
    if objective.format == "Alpaca":
        return row["output"]
    return row["completion"] if objective.format == "PromptCompletion" else fill(objective.response or "", row)


def conversation_of(row: Mapping[str, str], objective: CausalLM) -> Conversation:
    """The conversation of a row of a chat format."""
    return parse_conversation(row[objective.conversation_column], row[objective.tools] if objective.tools else "")


def prompt_key(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """What the model has to answer in this row, as one text that rows with the same prompt share."""
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        asked = without_answer(conversation_of(row, objective))
        return json.dumps([asked.messages, asked.tools])
    return prompt_of(row, objective)


def expected_of(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """The answer of a row, without white space around it: of a conversation the assistant's last turn."""
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        return str(conversation_of(row, objective).messages[-1]["content"]).strip()
    return response_of(row, objective).strip()


def shown_prompt(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """What the model has to answer in this row, to read."""
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        return text_of(conversation_of(row, objective).messages[:-1])
    return prompt_of(row, objective)


def _optional_text(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    if not isinstance(value, str | None):
        raise BadValueError(f"it is of type {type(value).__name__}, not text")
    return (value or "").strip() and str(value)
