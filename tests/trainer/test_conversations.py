"""Reading conversations from rows: what is none makes its row a bad one, with the reason and without a word of it."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import END, byte_tokenizer

from fedpipe_trainer.contract import CausalLM, DataPolicy, DataUse, Seq2SeqLM, denial
from fedpipe_trainer.data import IGNORED, encode, select_rows
from fedpipe_trainer.data.formats import prompt_key, prompt_of, references_of, response_of, shown_prompt
from fedpipe_trainer.data.python_text import parse_spelled
from fedpipe_trainer.errors import TaskFailed

GOOD = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
ASK = GOOD[0]
CHAT = CausalLM(format="Messages", tools="tools")
DEEP: Any = functools.reduce(lambda inner, _: [inner], range(100), [])
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hello", "it is a text, but not the JSON of a list of messages"),
        ([], "it is not a list of messages, at least one"),
        (["hello"], "it is not a list of messages, at least one"),
        ([ASK], "no turn is the assistant's, so there is nothing to learn from it"),
        ([ASK, {"role": "agent", "content": "secret"}], "turn 2 has no role, or another one than system, user, assistant, tool"),
        ([{"role": "user", "content": " "}, GOOD[1]], "turn 1 has no content"),
        ([ASK, {"role": "assistant", "content": None}], "turn 2 has no content"),
        ([ASK, {"role": "assistant", "content": 5}], "turn 2 has a content that is not text: of a tool's turns alone it may be an object"),
        ([ASK, {"role": "tool", "content": [{"type": "image", "image": "secret"}]}, GOOD[1]], "turn 2 has a part that is not text"),
        ([ASK, {"role": "tool", "content": DEEP}, GOOD[1]], "it has more than 64 lists and objects within"),
        ([ASK, {"role": "tool", "content": float("nan")}, GOOD[1]], "it has a value that JSON does not have"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, GOOD[1]], "turn 1 has a part that is not text"),
        ([ASK, CALL], "turn 2 calls a function with arguments that are not JSON"),
        ([ASK, {"role": "assistant", "tool_calls": [{"id": "secret"}]}], "turn 2 calls a function without a name"),
        ([ASK, {"role": "assistant", "tool_calls": 1}], "turn 2 calls a function, and is no object with its name and arguments"),
        ([ASK, {"role": "assistant", "tool_calls": "secret"}], "turn 2 calls a function, and is not the JSON of its name and arguments"),
        ([{"role": "system", "content": ""}], "the system says nothing in it, and nobody else does"),
        ([ASK, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": DEEP}]}], "it has more than 64 lists and objects within"),
        (GOOD * 501, "it has 1002 turns: at most 1000 are allowed"),
    ],
)
def test_a_row_without_a_usable_conversation_is_bad(tmp_path: Path, messages: Any, problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", {"messages": messages})

    with pytest.raises(TaskFailed) as caught:
        select_rows(path, CHAT, DataPolicy())

    assert f"at line 1: column 'messages': {problem}" in str(caught.value)
    assert "secret" not in str(caught.value)


BRIEF = {"role": "system", "content": "Be brief."}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]}
TOLD = {"role": "tool", "content": "1"}


@pytest.mark.parametrize(
    ("messages", "read"),
    [
        ([{"role": "system", "content": ""}, *GOOD], GOOD),
        ([{"role": "system", "content": None}, *GOOD], GOOD),
        ([{"role": "developer", "content": "Be brief."}, *GOOD], [BRIEF, *GOOD]),
        ([{"role": "User", "content": "hi"}, {"role": "Assistant", "content": "hello"}], GOOD),
        ([*GOOD, ASK], GOOD),
        ([*GOOD, ASK, {"role": "system", "content": "stop"}], GOOD),
        ([ASK, {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}}, {**TOLD, "role": "function"}, GOOD[1]],
         [ASK, CALLED, TOLD, GOOD[1]]),
        ([ASK, {"role": "assistant", "tool_calls": '[{"name": "f", "arguments": {"a": 1}}]'}, TOLD, GOOD[1]], [ASK, CALLED, TOLD, GOOD[1]]),
        ([ASK, {**GOOD[1], "tool_calls": []}], GOOD),
        ([ASK, {**GOOD[1], "tool_calls": ""}], GOOD),
    ],
    ids=[
        "an empty system turn", "a null system turn", "developer", "capitals", "ends with a user", "ends with a system", "function_call",
        "calls as text", "no calls", "no calls as text",
    ],
)  # fmt: skip
def test_usual_spellings_of_a_conversation_are_read(tmp_path: Path, messages: Any, read: Any) -> None:
    [row] = select_rows(write(tmp_path / "rows.jsonl", {"messages": messages}), CHAT, DataPolicy()).rows

    assert json.loads(row["messages"]) == read


@pytest.mark.parametrize("asks", ["human", "Human", "user"])
@pytest.mark.parametrize("answers", ["gpt", "GPT", "chatgpt", "assistant"])
@pytest.mark.parametrize("tells", ["tool", "tool_response", "function_response", "observation", "Observation"])
def test_speakers_of_share_gpt_have_several_names(tmp_path: Path, asks: str, answers: str, tells: str) -> None:
    turns = [(asks, "hi"), ("function_call", '{"name": "f", "arguments": {"a": 1}}'), (tells, "1"), (answers, "hello"), (asks, "bye")]
    path = write(tmp_path / "rows.jsonl", {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]})

    [row] = select_rows(path, CausalLM(format="ShareGPT"), DataPolicy()).rows

    assert json.loads(row["conversations"]) == [ASK, CALLED, TOLD, GOOD[1]]


WEATHER = {"city": "Köln", "degrees": 1.5, "is_wet": True, "wind": None}


@pytest.mark.parametrize("tells", ["tool", "observation"])
@pytest.mark.parametrize(
    ("told", "text"),
    [
        (WEATHER, '{"city": "Köln", "degrees": 1.5, "is_wet": true, "wind": null}'),
        ([WEATHER, {}], '[{"city": "Köln", "degrees": 1.5, "is_wet": true, "wind": null}, {}]'),
        (["a", 1], '["a", 1]'),
        ([], "[]"),
        (7, "7"),
        (False, "false"),
        (None, ""),
        ('{"a":  1}', '{"a":  1}'),
        ([{"type": "text", "text": "dr"}, {"type": "text", "text": "y"}], "dry"),
        ([{"type": "rain", "text": "dry"}], '[{"type": "rain", "text": "dry"}]'),
    ],
)
def test_what_a_tool_answered_may_be_any_json(tmp_path: Path, tells: str, told: Any, text: str) -> None:
    turns = [("human", "hi"), (tells, told), ("gpt", "hello")]
    share_gpt = {"conversations": [{"from": speaker, "value": value} for speaker, value in turns]}
    messages = {"messages": [ASK, {"role": "tool", "content": told}, GOOD[1]]}

    for objective, row in ((CausalLM(format="ShareGPT"), share_gpt), (CausalLM(format="Messages"), messages)):
        [read] = select_rows(write(tmp_path / "rows.jsonl", row), objective, DataPolicy()).rows
        assert json.loads(read[objective.conversation_column]) == [ASK, {"role": "tool", "content": text}, GOOD[1]]


@pytest.mark.parametrize("speaker", ["gpt", "human", "system"])
@pytest.mark.parametrize("value", [{"secret": 1}, ["secret"], 5])
def test_what_people_and_models_say_is_text(tmp_path: Path, speaker: str, value: Any) -> None:
    turns = [{"from": "human", "value": "hi"}, {"from": speaker, "value": value}, {"from": "gpt", "value": "hello"}]

    with pytest.raises(TaskFailed, match=r"column 'conversations': turn 2 has a (content|part) that is not text") as caught:
        select_rows(write(tmp_path / "rows.jsonl", {"conversations": turns}), CausalLM(format="ShareGPT"), DataPolicy())

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("speaker", ["function_call", "tool_call"])
@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "arguments": {"a": 1}},
        {"name": "f", "arguments": '{"a": 1}'},
        {"name": "f", "arguments": "{'a': 1}"},
        {"name": "f", "parameters": {"a": 1}},
        {"name": "f", "arguments": None, "parameters": {"a": 1}},
        [{"name": "f", "arguments": {"a": 1}}],
        {"function": {"name": "f", "arguments": {"a": 1}}},
        '{"name": "f", "arguments": {"a": 1}}',
        "[{'name': 'f', 'arguments': {'a': 1}}]",
    ],
)
def test_a_call_of_a_function_may_be_an_object_a_list_or_the_text_of_one(tmp_path: Path, speaker: str, call: Any) -> None:
    turns = [("human", "hi"), (speaker, call), ("observation", 1), ("gpt", "hello")]
    path = write(tmp_path / "rows.jsonl", {"conversations": [{"from": who, "value": value} for who, value in turns]})

    [row] = select_rows(path, CausalLM(format="ShareGPT"), DataPolicy()).rows

    assert json.loads(row["conversations"]) == [ASK, CALLED, TOLD, GOOD[1]]


@pytest.mark.parametrize("call", [None, "", {}, [], 5, "look it up", '"f"', {"arguments": {}}, [["f"]]])
def test_a_call_that_names_no_function_is_a_bad_row(tmp_path: Path, call: Any) -> None:
    turns = [("human", "hi"), ("function_call", call), ("gpt", "hello")]
    path = write(tmp_path / "rows.jsonl", {"conversations": [{"from": who, "value": value} for who, value in turns]})

    with pytest.raises(TaskFailed, match=r"column 'conversations': turn 2 calls a function(,| without)"):
        select_rows(path, CausalLM(format="ShareGPT"), DataPolicy())


def test_a_turn_of_share_gpt_may_have_its_calls_beside_its_text(tmp_path: Path) -> None:
    calling = {"from": "gpt", "value": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}
    turns = [{"from": "human", "value": "hi"}, calling, {"from": "tool", "value": 1}, {"from": "gpt", "value": "hello"}]

    [row] = select_rows(write(tmp_path / "rows.jsonl", {"conversations": turns}), CausalLM(format="ShareGPT"), DataPolicy()).rows

    assert json.loads(row["conversations"]) == [ASK, CALLED, TOLD, GOOD[1]]


LOOK = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": LOOK}


@pytest.mark.parametrize(
    "tools",
    [
        [WRAPPED],
        WRAPPED,
        [LOOK],
        LOOK,
        [{"type": "function", **LOOK}],
        [{**LOOK, "function": None}],
        json.dumps([LOOK]),
        json.dumps(WRAPPED),
        repr([WRAPPED]),
        [json.dumps(LOOK)],
        [repr(WRAPPED)],
    ],
)
def test_functions_are_read_as_a_list_an_object_or_texts_in_the_form_that_templates_expect(tmp_path: Path, tools: Any) -> None:
    [row] = select_rows(write(tmp_path / "rows.jsonl", {"messages": GOOD, "tools": tools}), CHAT, DataPolicy()).rows

    assert json.loads(row["tools"]) == [WRAPPED]


@pytest.mark.parametrize("tools", ["look", ["look"], 5, [5], [[]], "5", [None]])
def test_functions_that_are_no_objects_are_a_bad_row(tmp_path: Path, tools: Any) -> None:
    with pytest.raises(
        TaskFailed, match=r"column 'tools': it is (not a list of functions|a text, but not the JSON of a list of functions)"
    ):
        select_rows(write(tmp_path / "rows.jsonl", {"messages": GOOD, "tools": tools}), CHAT, DataPolicy())


@pytest.mark.parametrize("tools", [None, [], {}, "", " ", "[]", "{}", "null"])
def test_a_row_may_have_no_functions(tmp_path: Path, tools: Any) -> None:
    [row] = select_rows(write(tmp_path / "rows.jsonl", {"messages": GOOD, "tools": tools}), CHAT, DataPolicy()).rows

    assert row["tools"] == "[]"


ODD = "a 'quoted' \"word\", \\ back\\slash, None\n\u2028 \x00 \U0001f557 } {"


@pytest.mark.parametrize(
    "spell", [repr, lambda messages: "\n ".join(["[" + repr(messages[0]), repr(messages[1]) + "]"])], ids=["list", "array"]
)
def test_a_list_may_be_spelled_as_python_does(tmp_path: Path, spell: Callable[[Any], str]) -> None:
    """As pandas writes a column of lists, or of NumPy's arrays, to a CSV file."""
    messages = [{"role": "user", "content": ODD, "name": None}, GOOD[1]]
    path = write(tmp_path / "rows.jsonl", {"messages": spell(messages)})

    [row] = select_rows(path, CHAT, DataPolicy()).rows

    assert json.loads(row["messages"]) == [{"role": "user", "content": ODD}, GOOD[1]]


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_what_python_spells_is_read_as_it_was(value: Any) -> None:
    assert parse_spelled(repr([value])) == [value]


@pytest.mark.parametrize(
    "text",
    [
        "['",
        "['\\",
        '["',
        "['\\" * 50_000,
        "[" * 100_000,
        "[__import__('os')]",
        "['a' 'b']",
        "[1 for a in b]",
        "['\\d']",
        "['\\U99999999']",
        "[-1-1]",
    ],
)
def test_a_text_that_only_seems_to_be_a_list_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_spelled(text)


def test_one_bad_conversation_in_a_hundred_is_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *[{"messages": GOOD}] * 99, {"messages": [ASK]})

    found = select_rows(path, CHAT, DataPolicy())

    assert (len(found.rows), found.skipped) == (99, 1)


def test_a_conversation_may_be_json_in_a_csv_file_and_parts_of_a_turn_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    content = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    quoted = json.dumps([{"role": "user", "content": content}, GOOD[1]]).replace('"', '""')
    path.write_text(f'messages,tools\n"{quoted}",\n')

    [row] = select_rows(path, CHAT, DataPolicy()).rows

    assert json.loads(row["messages"]) == GOOD


def test_rows_with_the_same_turns_before_the_answer_have_the_same_prompt() -> None:
    one, other = ({"messages": json.dumps([ASK, {"role": "assistant", "content": text}]), "tools": "[]"} for text in ("a ", "b"))

    assert prompt_key(one, CHAT) == prompt_key(other, CHAT)
    assert [references_of(row, CHAT) for row in (one, other)] == [("a",), ("b",)]
    assert shown_prompt(one, CHAT) == "user: hi"


@pytest.mark.parametrize("objective", [CausalLM(format="Alpaca"), Seq2SeqLM(format="Alpaca")])
def test_an_alpaca_row_may_leave_its_input_out(tmp_path: Path, objective: CausalLM | Seq2SeqLM) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        {"instruction": "Add.", "input": "1 1", "output": "2"},
        {"instruction": "Sing.", "input": "", "output": "La"},
    )

    with_input, without = select_rows(path, objective, DataPolicy()).rows

    assert prompt_of(with_input, objective).endswith("### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n")
    assert prompt_of(without, objective).endswith("### Instruction:\nSing.\n\n### Response:\n")
    assert "Input" not in prompt_of(without, objective)
    assert (response_of(with_input, objective), response_of(without, objective)) == ("2", "La")


ADD = {"instruction": "Add.", "input": "1 1", "output": "2"}


def test_an_alpaca_row_may_have_a_system_and_earlier_exchanges(tmp_path: Path) -> None:
    """LLaMA-Factory's columns, which its template puts where they are here."""
    history = [["Sing {la}.", "La"], ["Again.", "La la"]]
    path = write(tmp_path / "rows.jsonl", {**ADD, "system": "Be brief.", "history": history}, {**ADD, "system": "", "history": []}, ADD)

    whole, *without = select_rows(path, CausalLM(format="Alpaca"), DataPolicy()).rows

    assert prompt_of(whole, CausalLM(format="Alpaca")) == (
        "Be brief.\n\n### Instruction:\nSing {la}.\n\n### Response:\nLa\n\n### Instruction:\nAgain.\n\n### Response:\nLa la\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n"
    )
    assert all(
        prompt_of(row, CausalLM(format="Alpaca")).startswith("Below is an instruction that describes a task, paired") for row in without
    )


@pytest.mark.parametrize("history", [["a", "b"], [["a"]], [["a", None]], "a", {"a": "b"}, 1, [["a", "b"]] * 1001])
def test_earlier_exchanges_that_are_no_pairs_of_texts_are_a_bad_row(tmp_path: Path, history: Any) -> None:
    with pytest.raises(TaskFailed, match="column 'history': it"):
        select_rows(write(tmp_path / "rows.jsonl", {**ADD, "history": history}), CausalLM(format="Alpaca"), DataPolicy())


CHATS = {
    "Messages": {"messages": GOOD},
    "ShareGPT": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
}


@pytest.mark.parametrize("format_", ["Messages", "ShareGPT"])
def test_the_column_system_is_a_turn_of_the_system_before_a_conversation_without_its_own(tmp_path: Path, format_: Any) -> None:
    chat, objective = CHATS[format_], CausalLM(format=format_)
    own = {column: [{"role": "system", "content": "Own.", "from": "system", "value": "Own."}, *turns] for column, turns in chat.items()}
    path = write(tmp_path / "rows.jsonl", {**chat, "system": "Be brief."}, {**own, "system": "Be brief."}, {**chat, "system": None}, chat)

    rows = select_rows(path, objective, DataPolicy()).rows

    assert [shown_prompt(row, objective) for row in rows] == ["system: Be brief.\nuser: hi", "system: Own.\nuser: hi", *["user: hi"] * 2]


@pytest.mark.parametrize(("columns", "prompt"), [(("messages",), "user: hi"), (("messages", "system"), "system: Be brief.\nuser: hi")])
def test_a_column_that_a_format_may_have_is_read_where_the_policy_allows_it(
    tmp_path: Path, columns: tuple[str, ...], prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    objective, policy = CausalLM(format="Messages"), DataPolicy(columns=columns)
    use = DataUse(run="run", run_labels={}, objective=objective, contributors=3)
    [row] = select_rows(write(tmp_path / "rows.jsonl", {"messages": GOOD, "system": "Be brief."}), objective, policy).rows

    assert denial(policy, use) == ""
    assert shown_prompt(row, objective) == prompt
    assert "system" not in caplog.text


def test_whether_the_data_have_a_column_that_the_policy_does_not_allow_is_not_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    said = []
    for row in ({"messages": GOOD}, {"messages": GOOD, "system": "Be brief."}):
        select_rows(write(tmp_path / "rows.jsonl", row), CausalLM(format="Messages"), DataPolicy(columns=("messages",)))
        said.append(caplog.text)
        caplog.clear()

    assert "policy.columns does not allow system: the task is done without, whether or not the data have it" in said[0]
    assert said[0] == said[1]


def test_a_column_system_that_the_task_names_for_something_else_is_that(tmp_path: Path) -> None:
    objective = CausalLM(format="Messages", messages="system")
    [row] = select_rows(write(tmp_path / "rows.jsonl", {"system": GOOD}), objective, DataPolicy()).rows

    assert shown_prompt(row, objective) == "user: hi"


def test_a_prompt_and_a_completion_are_taken_as_they_are(tmp_path: Path) -> None:
    objective = CausalLM(format="PromptCompletion")
    [row] = select_rows(write(tmp_path / "rows.jsonl", {"prompt": "{a} b", "completion": " c{"}), objective, DataPolicy()).rows

    assert (prompt_of(row, objective), response_of(row, objective)) == ("{a} b", " c{")


@pytest.mark.parametrize(
    "answers",
    [["in Köln", "Köln"], {"text": ["in Köln", "Köln"], "answer_start": [3, 6]}, '["in Köln", "Köln"]', '{"text": ["in Köln", "Köln"]}'],
)
def test_a_question_has_a_context_and_answers_of_which_the_first_is_learnt(tmp_path: Path, answers: Any) -> None:
    objectives = CausalLM(format="QuestionAnswering"), Seq2SeqLM(format="QuestionAnswering")
    path = write(tmp_path / "rows.jsonl", {"context": "It is in Köln.", "question": "Where?", "answers": answers})

    [row] = select_rows(path, objectives[0], DataPolicy()).rows

    prompts, responses = ([make(row, objective) for objective in objectives] for make in (prompt_of, response_of))
    assert prompts == ["It is in Köln.\n\nQuestion: Where?\nAnswer:", "question: Where? context: It is in Köln."]
    assert responses == [" in Köln", "in Köln"]
    assert references_of(row, objectives[0]) == ("in Köln", "Köln")


@pytest.mark.parametrize("answers", [[], {"text": ""}, {}, [5], " ", "{'text': array(['a'], dtype=object), 'answer_start': array([1])}"])
def test_a_question_without_an_answer_is_a_bad_row(tmp_path: Path, answers: Any) -> None:
    path = write(tmp_path / "rows.jsonl", {"context": "c", "question": "q", "answers": answers})

    with pytest.raises(TaskFailed, match=r"column 'answers': it (has no answer|is an object as Python)"):
        select_rows(path, CausalLM(format="QuestionAnswering"), DataPolicy())


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, '{"text": []}', "{'text': [], 'answer_start': []}"])
def test_a_question_that_the_context_does_not_answer_has_an_empty_answer(tmp_path: Path, answers: Any) -> None:
    """SQuAD 2 has them, and a third of its questions are such."""
    objectives = CausalLM(format="QuestionAnswering"), Seq2SeqLM(format="QuestionAnswering")
    path = write(tmp_path / "rows.jsonl", {"context": "c", "question": "q", "answers": answers})

    [row] = select_rows(path, objectives[0], DataPolicy()).rows

    assert [response_of(row, objective) for objective in objectives] == ["", ""]
    assert references_of(row, objectives[0]) == ("",)
    [sample] = encode([row], objectives[0], byte_tokenizer(add_end_token=False))
    assert [label for label in sample.labels if label != IGNORED] == [END]
