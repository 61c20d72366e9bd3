"""The formats of the data: how columns that are not simply text are read, and what the input and output of a row are."""

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import Any, Final

from fedpipe_trainer.contract import CHAT_FORMATS, CausalLM, Objective, Preference, Seq2SeqLM, SequenceClassification, optional_columns
from fedpipe_trainer.contract.result import MAX_TARGET
from fedpipe_trainer.data.conversations import (
    Conversation,
    parse_conversation,
    read_history,
    read_messages,
    read_share_gpt,
    read_tools,
    text_of,
    without_answer,
)
from fedpipe_trainer.data.preferences import check_pair, preference_readers
from fedpipe_trainer.data.python_text import parse_spelled
from fedpipe_trainer.data.rows import Row
from fedpipe_trainer.data.templates import fill
from fedpipe_trainer.data.values import BadValueError, ValueReader, read_label

# The two prompts of the Stanford Alpaca project, on which models of this format were trained; axolotl's `alpaca` is the same.
_ALPACA_WITH_INPUT: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_ALPACA_WITHOUT_INPUT: Final = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_INSTRUCTION: Final = "### Instruction:\n{instruction}\n\n"
_INPUT: Final = "### Input:\n{input}\n\n"
_RESPONSE: Final = "### Response:\n"


_QUESTION: Final = "{context}\n\nQuestion: {question}\nAnswer:"
_T5_QUESTION: Final = "question: {question} context: {context}"
"""As T5 was trained on SQuAD (Raffel et al., arXiv 1910.10683, appendix D.15)."""
_OF_NUMPY: Final = re.compile(r"\s*\{'(?:text|answer_start)': array\(")


def value_readers(objective: Objective) -> Mapping[str, ValueReader]:
    """By column whose value is not simply a text: how it is read."""
    optional: dict[str, ValueReader] = {
        column: read_history if column == "history" else _optional_text for column in optional_columns(objective)
    }
    return {**optional, **_readers_of_type(objective)}


def _readers_of_type(objective: Objective) -> Mapping[str, ValueReader]:
    if isinstance(objective, SequenceClassification):
        return {objective.label: _LABEL_READERS[objective.problem]}
    if isinstance(objective, Preference):
        return preference_readers(objective)
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        readers: dict[str, ValueReader] = {objective.conversation_column: _CHAT_READERS[objective.format]}
        return readers | ({objective.tools: read_tools} if objective.tools else {})
    return {"Alpaca": {"input": _optional_text}, "QuestionAnswering": {"answers": read_answers}}.get(objective.format, {})


def row_check(objective: Objective) -> Callable[[Row], None] | None:
    """What a row must keep to beyond each of its columns, see `read_rows`; None: nothing."""
    return partial(check_pair, objective=objective) if isinstance(objective, Preference) else None


def labels_of(row: Mapping[str, str], objective: SequenceClassification) -> tuple[str, ...]:
    """The labels of a row: one, or any number of them."""
    return tuple(json.loads(row[objective.label])) if objective.problem == "MultiLabel" else (row[objective.label],)


def read_labels(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    """A list of labels, or its JSON or Python's spelling as text, as JSON text: each once, in order. A row may have none.

    Raises:
        BadValueError: it is no list of labels, see `read_label`.
    """
    if isinstance(value, str):
        try:
            value = parse_spelled(value)
        except ValueError:
            raise BadValueError("it is a text, but not the JSON of a list of labels") from None
    if not isinstance(value, list):
        raise BadValueError("it is not a list of labels")
    spelled = [read_label(one) for one in value]
    return json.dumps(list(dict.fromkeys(spelled)), ensure_ascii=False)


def read_number(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    """A number, or its text, as text.

    Raises:
        BadValueError: it is not a number, or one whose square no loss may have.
    """
    number = number_of(value)
    if abs(number) > MAX_TARGET:
        advice = "scale the column, for instance to thousands, at every site by the same factor"
        raise BadValueError(f"it is above {MAX_TARGET:g} or below −{MAX_TARGET:g}, and the loss is its square: {advice}")
    return repr(number)


def number_of(value: Any) -> float:  # noqa: ANN401 - any value of a data file
    """A finite number, or that of its text.

    Raises:
        BadValueError: it is not a number.
    """
    try:
        number = float(value) if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadValueError("it is not a number")
    return number


_CHAT_READERS: Final[dict[str, ValueReader]] = {"Messages": read_messages, "ShareGPT": read_share_gpt}
_LABEL_READERS: Final[dict[str, ValueReader]] = {"SingleLabel": read_label, "MultiLabel": read_labels, "Regression": read_number}


def prompt_of(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """The input of a row of a format that has two texts.

    Raises:
        TaskFailed: BadTask, as `fill`.
    """
    if objective.format == "Alpaca":
        return _alpaca_prompt(row)
    if objective.format == "QuestionAnswering":
        return fill(_T5_QUESTION if isinstance(objective, Seq2SeqLM) else _QUESTION, row)
    return row["prompt"] if objective.format == "PromptCompletion" else fill(objective.prompt or "", row)


def _alpaca_prompt(row: Mapping[str, str]) -> str:
    """The prompt of an instruction. A system's text stands in place of the first sentence, earlier exchanges before the instruction."""
    opening = row.get("system") or (_ALPACA_WITH_INPUT if row["input"] else _ALPACA_WITHOUT_INPUT)
    exchanges = [f"{fill(_INSTRUCTION, {'instruction': asked})}{_RESPONSE}{said}" for asked, said in json.loads(row.get("history") or "[]")]
    last = fill(f"{_INSTRUCTION}{_INPUT if row['input'] else ''}{_RESPONSE}", row)
    return "\n\n".join([opening, *exchanges, last])


def response_of(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """The output of a row of a format that has two texts.

    Raises:
        TaskFailed: BadTask, as `fill`.
    """
    if objective.format == "Alpaca":
        return row["output"]
    if objective.format == "QuestionAnswering":
        answer = _answers(row)[0]
        return f" {answer}" if answer and isinstance(objective, CausalLM) else answer
    return row["completion"] if objective.format == "PromptCompletion" else fill(objective.response or "", row)


def conversation_of(row: Mapping[str, str], objective: CausalLM) -> Conversation:
    """The conversation of a row of a chat format."""
    tools = row[objective.tools] if objective.tools else ""
    system = row.get("system", "") if "system" in optional_columns(objective) else ""
    return parse_conversation(row[objective.conversation_column], tools, system)


def prompt_key(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """What the model has to answer in this row, as one text that rows with the same prompt share."""
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        asked = without_answer(conversation_of(row, objective))
        return json.dumps([asked.messages, asked.tools])
    return prompt_of(row, objective)


def references_of(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> tuple[str, ...]:
    """The right answers of a row, at least one, without white space around them: of a conversation the assistant's last turn."""
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        return (str(conversation_of(row, objective).messages[-1]["content"]).strip(),)
    if objective.format == "QuestionAnswering":
        return tuple(answer.strip() for answer in _answers(row))
    return (response_of(row, objective).strip(),)


def read_answers(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    """The answers to a question as JSON text, the first of which is learnt: a text, a list of them, or SQuAD's object with `text`.

    A question that the context does not answer is SQuAD 2's object without texts (Rajpurkar et al., arXiv 1806.03822). Its answer is empty,
    as it is in the examples of transformers.

    Raises:
        BadValueError: it is none of these.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError):  # an answer may begin with a bracket
            value = parse_spelled(value)
    if isinstance(value, str) and _OF_NUMPY.match(value):
        raise BadValueError("it is an object as Python writes it, with arrays: write it with json.dumps, or the data as jsonl or parquet")
    if isinstance(value, Mapping) and value.get("text") == []:
        return json.dumps([""])
    found = value.get("text") if isinstance(value, Mapping) else value
    answers = [found] if isinstance(found, str) else found
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str) and one.strip() for one in answers):
        raise BadValueError("it has no answer: write a text, a list of texts, or SQuAD's object with text")
    return json.dumps(list(dict.fromkeys(answers)), ensure_ascii=False)


def _answers(row: Mapping[str, str]) -> list[str]:
    """Those of a row that was read; of one without texts, which shows what a template itself writes, an empty one."""
    answers: list[str] = json.loads(row["answers"] or '[""]')
    return answers


def shown_prompt(row: Mapping[str, str], objective: CausalLM | Seq2SeqLM) -> str:
    """What the model has to answer in this row, to read."""
    if isinstance(objective, CausalLM) and objective.format in CHAT_FORMATS:
        return text_of(conversation_of(row, objective).messages[:-1])
    return prompt_of(row, objective)


def _optional_text(value: Any) -> str:  # noqa: ANN401 - any value of a data file
    if not isinstance(value, str | None):
        raise BadValueError(f"it is of type {type(value).__name__}, not text")
    return (value or "").strip() and str(value)
