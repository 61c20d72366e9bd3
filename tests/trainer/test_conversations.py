"""Reading conversations from rows: what is none makes its row a bad one, with the reason and without a word of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedpipe_trainer.contract import CausalLM, DataPolicy, Seq2SeqLM
from fedpipe_trainer.data import select_rows
from fedpipe_trainer.data.formats import prompt_key, prompt_of, references_of, response_of, shown_prompt
from fedpipe_trainer.errors import TaskFailed

GOOD = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
ASK = GOOD[0]
CHAT = CausalLM(format="Messages", tools="tools")
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
        ([ASK], "its last turn is not the assistant's"),
        ([ASK, {"role": "agent", "content": "secret"}], "turn 2 has no role, or another one than system, user, assistant, tool"),
        ([{"role": "user", "content": " "}, GOOD[1]], "turn 1 has no content"),
        ([ASK, {"role": "assistant", "content": None}], "turn 2 has no content"),
        ([ASK, {"role": "assistant", "content": 5}], "turn 2 has a content that is not text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, GOOD[1]], "turn 1 has a part that is not text"),
        ([ASK, CALL], "turn 2 calls a function with arguments that are not JSON"),
        ([ASK, {"role": "assistant", "tool_calls": [{"id": "secret"}]}], "turn 2 calls a function without a name"),
        (GOOD * 501, "it has 1002 turns: at most 1000 are allowed"),
    ],
)
def test_a_row_without_a_usable_conversation_is_bad(tmp_path: Path, messages: Any, problem: str) -> None:
    path = write(tmp_path / "rows.jsonl", {"messages": messages})

    with pytest.raises(TaskFailed) as caught:
        select_rows(path, CHAT, DataPolicy())

    assert f"at line 1: column 'messages': {problem}" in str(caught.value)
    assert "secret" not in str(caught.value)


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


@pytest.mark.parametrize("answers", [[], {"text": []}, [5], " "])
def test_a_question_without_an_answer_is_a_bad_row(tmp_path: Path, answers: Any) -> None:
    path = write(tmp_path / "rows.jsonl", {"context": "c", "question": "q", "answers": answers})

    with pytest.raises(TaskFailed, match="column 'answers': it has no answer"):
        select_rows(path, CausalLM(format="QuestionAnswering"), DataPolicy())
