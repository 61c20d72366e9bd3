"""Whatever JSON stands in a field of a row: it is a row that can be encoded, or a bad one with a reason, and never an exception."""

from typing import Any

import pytest
from chat_templates import CHATML_WITH_TOOLS, chat_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_trainer.contract import CausalLM, FailureReason, Objective, Preference, Seq2SeqLM, optional_columns
from fedpipe_trainer.data import encode
from fedpipe_trainer.data.formats import prompt_key, references_of, row_check, shown_prompt, value_readers
from fedpipe_trainer.data.preferences import is_tie, shown_pair
from fedpipe_trainer.data.readers import BadRowError
from fedpipe_trainer.data.templates import columns_of
from fedpipe_trainer.data.values import Columns, select_columns
from fedpipe_trainer.errors import TaskFailed

TOKENIZER = chat_tokenizer(CHATML_WITH_TOOLS)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["[]", "{}", "[1]", "[[", "null"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def either(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, or anything."""
    return st.one_of(usual, usual, usual, JSON)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with some of these fields, each as it should be or anything."""
    return st.fixed_dictionaries({}, optional={name: either(usual) for name, usual in fields.items()})


TEXTS = st.sampled_from(["hi", "", "</s>", "<|im_end|>"])
PARTS = st.lists(either(some(type=st.just("text"), text=TEXTS)), max_size=2)
FUNCTIONS = some(name=TEXTS, arguments=st.just({"a": 1}) | st.just('{"a": 1}'))
CALLS = some(id=TEXTS, type=st.just("function"), function=FUNCTIONS)
MESSAGES = some(
    role=st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]), content=TEXTS | PARTS, name=TEXTS,
    tool_call_id=TEXTS, reasoning_content=TEXTS, tool_calls=st.lists(either(CALLS), max_size=2), function_call=FUNCTIONS,
)  # fmt: skip
TURNS = some(**{"from": st.sampled_from(["system", "human", "gpt", "function_call", "observation"]), "value": TEXTS | FUNCTIONS})
ASK, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CHAT = st.lists(either(MESSAGES), min_size=1, max_size=4).map(lambda turns: [ASK, *turns, ANSWER])
SHARED = st.lists(either(TURNS), min_size=1, max_size=4).map(lambda turns: [*turns, {"from": "gpt", "value": "hello"}])
TOOLS = st.lists(either(some(name=TEXTS, parameters=st.just({"type": "object"}))), max_size=2)
ANSWERS = st.lists(TEXTS, max_size=2) | some(text=st.lists(TEXTS, max_size=2)) | TEXTS
HISTORY = st.lists(either(st.lists(either(TEXTS), min_size=2, max_size=2)), max_size=2)
ONE_ANSWER = st.lists(either(MESSAGES), max_size=2).map(lambda turns: [*turns, ANSWER]) | either(MESSAGES) | TEXTS


def read_and_encode(record: dict[str, Any], objective: Objective) -> None:
    columns = Columns([*columns_of(objective), *optional_columns(objective)], value_readers(objective), row_check(objective))
    try:
        row = select_columns(record, columns)
    except BadRowError as error:
        assert str(error)  # noqa: PT017 - it may be raised or not
        return
    if isinstance(objective, CausalLM | Seq2SeqLM):
        assert references_of(row, objective)
        prompt_key(row, objective)
        shown_prompt(row, objective)
    if isinstance(objective, Preference) and is_tie(row, objective):
        return
    if isinstance(objective, Preference):
        shown_pair(row, objective)
    try:
        encode([row], objective, TOKENIZER)
    except TaskFailed as error:  # the template refuses it, as the only one
        assert error.reason in {FailureReason.BAD_DATA, FailureReason.BAD_MODEL}  # noqa: PT017 - it may be raised or not


@given(some(messages=CHAT, tools=TOOLS, system=TEXTS))
def test_a_row_of_messages(record: dict[str, Any]) -> None:
    read_and_encode(record, CausalLM(format="Messages", tools="tools"))


@given(some(conversations=SHARED, tools=TOOLS, system=TEXTS))
def test_a_row_of_share_gpt(record: dict[str, Any]) -> None:
    read_and_encode(record, CausalLM(format="ShareGPT", tools="tools"))


@given(some(prompt=CHAT | TEXTS, chosen=ONE_ANSWER, rejected=ONE_ANSWER, system=TEXTS), st.sampled_from(["prompt", None]))
def test_a_row_of_two_answers(record: dict[str, Any], prompt: str | None) -> None:
    read_and_encode(record, Preference(prompt_column=prompt))


@given(some(context=TEXTS, question=TEXTS, answers=ANSWERS))
def test_a_row_of_a_question(record: dict[str, Any]) -> None:
    read_and_encode(record, CausalLM(format="QuestionAnswering"))


@pytest.mark.parametrize("format_", ["Alpaca", "PromptCompletion"])
@given(record=some(instruction=TEXTS, input=TEXTS, output=TEXTS, prompt=TEXTS, completion=TEXTS, system=TEXTS, history=HISTORY))
def test_a_row_of_texts(format_: Any, record: dict[str, Any]) -> None:
    read_and_encode(record, CausalLM(format=format_))
