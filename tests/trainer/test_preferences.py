"""Pairs of answers: the forms of a row, what is left out, truncation, and pairs as samples of a batch."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, CHATML_MARKED, MISTRAL, REASONING, SPLITTING, chat_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from toys import END, byte_tokenizer

from fedpipe_trainer.contract import DataPolicy, FailureReason, Preference
from fedpipe_trainer.data import (
    IGNORED,
    Example,
    Rows,
    collate,
    count_padding,
    count_targets,
    count_tokens,
    encode,
    select_rows,
    shown_pair,
)
from fedpipe_trainer.data.pairs import join_answers, split_answers
from fedpipe_trainer.errors import TaskFailed

EXPLICIT = Preference(prompt_column="prompt", max_length=64)
IMPLICIT = Preference(max_length=64)
USER = {"role": "user", "content": "Sky?"}
BLUE, GREEN = ({"role": "assistant", "content": colour} for colour in ("It is blue.", "It is green."))
BYTES = byte_tokenizer(add_end_token=False)


def read(tmp_path: Path, rows: list[dict[str, Any]], objective: Preference = IMPLICIT) -> Rows:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return select_rows(path, objective, DataPolicy())


def answers_of(example: Example) -> tuple[Example, Example]:
    chosen, rejected = split_answers([example])
    return chosen, rejected


def text_of(ids: list[int]) -> str:
    return str(BYTES.decode(ids, skip_special_tokens=True))


def targets_of(example: Example) -> str:
    return text_of([int(label) for label in example.labels if label != IGNORED])


def encoded(tmp_path: Path, row: dict[str, Any], objective: Preference, tokenizer: Any = BYTES) -> tuple[Example, Example]:
    [pair] = encode(read(tmp_path, [row], objective).rows, objective, tokenizer)
    return answers_of(pair)


def test_a_prompt_of_its_own_stands_before_both_answers(tmp_path: Path) -> None:
    chosen, rejected = encoded(tmp_path, {"prompt": "Sky? ", "chosen": "Blue.", "rejected": "Greenish."}, EXPLICIT)

    assert (text_of(chosen.input_ids), text_of(rejected.input_ids)) == ("Sky? Blue.", "Sky? Greenish.")
    assert (targets_of(chosen), targets_of(rejected)) == ("Blue.", "Greenish.")
    assert [one.labels[-1] for one in (chosen, rejected)] == [END, END]


def test_the_prompt_may_be_what_both_answers_begin_with(tmp_path: Path) -> None:
    chosen, rejected = encoded(tmp_path, {"chosen": "Sky? Blue.", "rejected": "Sky? Blank."}, IMPLICIT)

    assert (text_of(chosen.input_ids), text_of(rejected.input_ids)) == ("Sky? Blue.", "Sky? Blank.")
    assert (targets_of(chosen), targets_of(rejected)) == ("ue.", "ank.")  # what they share counts the same in both


@pytest.mark.parametrize(
    ("objective", "row", "prompt"),
    [
        (EXPLICIT, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}, "system: Be brief.\nuser: Sky?"),
        (EXPLICIT, {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}, "system: Be brief.\nuser: Sky?"),
        (IMPLICIT, {"chosen": [USER, BLUE], "rejected": [USER, GREEN]}, "system: Be brief.\nuser: Sky?"),
        (EXPLICIT, {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}, "Be brief.\n\nSky?"),
        (IMPLICIT, {"chosen": "Sky? Blue.", "rejected": "Sky? Green."}, "Be brief.\n\nSky? "),
    ],
)
def test_the_column_system_stands_before_the_prompt(tmp_path: Path, objective: Preference, row: dict[str, Any], prompt: str) -> None:
    [with_system, without] = read(tmp_path, [{**row, "system": "Be brief."}, row], objective).rows
    own = {"role": "system", "content": "Own."}
    if isinstance(row["chosen"], list) and row["chosen"][0] is USER:
        [kept] = read(
            tmp_path, [{**row, "chosen": [own, *row["chosen"]], "rejected": [own, *row["rejected"]], "system": "x"}], objective
        ).rows
        assert shown_pair(kept, objective)[0].startswith("system: Own.\nuser")

    assert shown_pair(with_system, objective)[0] == prompt
    assert shown_pair(with_system, objective)[1:] == shown_pair(without, objective)[1:]
    assert shown_pair(without, objective)[0] == prompt.removeprefix("system: Be brief.\n").removeprefix("Be brief.\n\n")


def test_an_empty_system_turn_of_both_answers_is_left_out(tmp_path: Path) -> None:
    silent = {"role": "system", "content": ""}
    [row] = read(tmp_path, [{"chosen": [silent, USER, BLUE], "rejected": [silent, USER, GREEN]}]).rows

    assert shown_pair(row, IMPLICIT)[0] == "user: Sky?"


def test_messages_that_pandas_wrote_to_a_table_are_no_texts(tmp_path: Path) -> None:
    [row] = read(tmp_path, [{"chosen": repr([USER, BLUE]), "rejected": repr([USER, GREEN])}]).rows

    assert shown_pair(row, IMPLICIT) == ("user: Sky?", BLUE["content"], GREEN["content"])


def pairs_of_which_some_answers_are_not_told(untold: int) -> list[dict[str, Any]]:
    """Ten, of which so many have an answer that the template SPLITTING takes for reasoning."""
    odd = {"role": "assistant", "content": "close it with </think>"}
    return [{"prompt": "Sky?", "chosen": [odd if at < untold else BLUE], "rejected": [GREEN]} for at in range(10)]


def test_a_few_pairs_whose_answers_the_template_does_not_tell_are_left_out(tmp_path: Path) -> None:
    rows = read(tmp_path, pairs_of_which_some_answers_are_not_told(3), EXPLICIT).rows

    assert len(encode(rows, EXPLICIT, chat_tokenizer(SPLITTING))) == 7


@pytest.mark.parametrize(("untold", "reason"), [(4, FailureReason.BAD_DATA), (6, FailureReason.BAD_MODEL)])
def test_pairs_whose_answers_the_template_does_not_tell_are_its_fault_if_they_are_most(
    tmp_path: Path, untold: int, reason: FailureReason
) -> None:
    rows = read(tmp_path, pairs_of_which_some_answers_are_not_told(untold), EXPLICIT).rows

    with pytest.raises(TaskFailed) as caught:
        encode(rows, EXPLICIT, chat_tokenizer(SPLITTING))

    assert caught.value.reason is reason


FORMS = {
    "the answers alone": (EXPLICIT, {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}),
    "an answer as one message": (EXPLICIT, {"prompt": [USER], "chosen": BLUE, "rejected": GREEN}),
    "answers that are texts": (EXPLICIT, {"prompt": [USER], "chosen": BLUE["content"], "rejected": GREEN["content"]}),
    "a prompt that is a text": (EXPLICIT, {"prompt": "Sky?", "chosen": [BLUE], "rejected": [GREEN]}),
    "whole conversations beside a prompt": (EXPLICIT, {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]}),
    "whole conversations": (IMPLICIT, {"chosen": [USER, BLUE], "rejected": [USER, GREEN]}),
    "their JSON": (IMPLICIT, {"chosen": json.dumps([USER, BLUE]), "rejected": json.dumps([USER, GREEN])}),
}


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED, REASONING], ids=["rendered", "marked", "otherwise"])
@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_is_rendered_by_the_template_in_whatever_form_it_comes(tmp_path: Path, form: str, template: str) -> None:
    objective, row = FORMS[form]
    tokenizer = chat_tokenizer(template)

    chosen, rejected = encoded(tmp_path, row, objective.model_copy(update={"max_length": 128}), tokenizer)

    expected = tokenizer.apply_chat_template([USER, BLUE], tokenize=False).rstrip()  # a template's line break after an answer is nobody's
    assert tokenizer.decode(chosen.input_ids) == expected
    assert "It is blue." in targets_of(chosen)
    assert "It is green." in targets_of(rejected)
    assert "Sky?" not in targets_of(chosen) + targets_of(rejected)


def test_only_turns_after_the_common_ones_count(tmp_path: Path) -> None:
    before = [USER, BLUE, {"role": "user", "content": "Sure?"}]
    yes, no = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))

    chosen, _ = encoded(tmp_path, {"chosen": [*before, yes], "rejected": [*before, no]}, IMPLICIT, chat_tokenizer(CHATML))

    assert targets_of(chosen) == "Yes."


@pytest.mark.parametrize(
    ("objective", "row", "reason"),
    [
        (IMPLICIT, {"chosen": "Blue.", "rejected": "Green."}, "name the column with the prompt in task.promptColumn"),
        (IMPLICIT, {"chosen": [BLUE], "rejected": [GREEN]}, "there is no turn before the answers"),
        (IMPLICIT, {"chosen": [USER, BLUE], "rejected": "Green."}, "one of the answers is a text and the other a list of messages"),
        (IMPLICIT, {"chosen": [USER, BLUE], "rejected": [USER]}, "column 'rejected': its last turn is not the assistant's"),
        (
            IMPLICIT,
            {"chosen": [USER, BLUE], "rejected": [{"role": "user", "content": "Grass?"}, GREEN]},
            "the two answers begin differently, so they have no prompt",
        ),
        (
            EXPLICIT,
            {"prompt": "Sky?", "chosen": [BLUE, USER, BLUE], "rejected": [BLUE, {"role": "user", "content": "Grass?"}, GREEN]},
            "the two answers differ in a turn that is not the assistant's",
        ),
        (EXPLICIT, {"prompt": [USER, BLUE], "chosen": [BLUE], "rejected": [GREEN]}, "column 'prompt': its last turn is the assistant's"),
        (EXPLICIT, {"prompt": "Sky?", "chosen": " ", "rejected": "Green."}, "column 'chosen': it is empty"),
        (EXPLICIT, {"prompt": "Sky?", "chosen": "Blue.", "rejected": []}, "column 'rejected': it is not a list of messages, at least one"),
        (EXPLICIT, {"prompt": "Sky?", "chosen": 7, "rejected": "Green."}, "column 'chosen': it is neither a text nor a list of messages"),
    ],
)
def test_a_row_that_is_no_pair_says_why(tmp_path: Path, objective: Preference, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(TaskFailed) as failed:
        read(tmp_path, [row], objective)

    assert reason in str(failed.value)
    assert "the first at line 1" in str(failed.value)
    assert "Grass" not in str(failed.value)


@pytest.mark.parametrize("column", ["prompt", "rejected"])
def test_a_column_that_no_pair_has_is_told_with_the_field_that_names_it(tmp_path: Path, column: str) -> None:
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}
    del row[column]

    with pytest.raises(TaskFailed, match=rf"column '{column}' \(task.{column}Column\) does not exist in"):
        read(tmp_path, [row], EXPLICIT)


def test_a_few_rows_that_are_no_pairs_are_skipped_and_counted(tmp_path: Path) -> None:
    good = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}

    found = read(tmp_path, [*[good] * 99, good | {"chosen": ""}], EXPLICIT)

    assert (len(found.rows), found.skipped) == (99, 1)


def test_pairs_of_equal_answers_are_skipped_however_many_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, tie = {"chosen": "Sky? Blue.", "rejected": "Sky? Green."}, {"chosen": "Sky? Blue.", "rejected": "Sky? Blue."}

    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, [tie, good, tie])

    assert (len(found.rows), found.skipped) == (1, 2)
    assert "2 of 3 rows" in caplog.text
    assert "prefer nothing: 'chosen' and 'rejected' are the same" in caplog.text


def test_data_of_equal_answers_alone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match=r"1 of 1 rows .* correct task.chosenColumn and task.rejectedColumn"):
        read(tmp_path, [{"chosen": "Sky? Blue.", "rejected": "Sky? Blue."}])


def test_answers_that_differ_beyond_the_length_fail_and_name_the_length(tmp_path: Path) -> None:
    long = "Sky? It is a long time since" * 5
    rows = read(tmp_path, [{"chosen": f"{long} A", "rejected": f"{long} B", "prompt": "Sky? "}], EXPLICIT).rows

    with pytest.raises(TaskFailed, match=r"task.maxLength both answers are the same in 1 of 1 pairs, .* raise task.maxLength, which is 64"):
        encode(rows, EXPLICIT, BYTES)


@pytest.mark.parametrize(("left_out", "fails"), [(3, False), (4, True)])
def test_a_few_rare_pairs_among_the_rows_of_an_evaluation_do_not_fail_it(tmp_path: Path, left_out: int, *, fails: bool) -> None:
    long = "It is a long time since" * 5
    alike = {"prompt": "Sky? ", "chosen": f"{long} A", "rejected": f"{long} B"}
    rows = read(tmp_path, [*[alike] * left_out, *[{"prompt": "Sky? ", "chosen": "Blue.", "rejected": "Green."}] * 30], EXPLICIT).rows

    if fails:
        with pytest.raises(TaskFailed, match="4 of 34 pairs"):
            encode(rows, EXPLICIT, BYTES)
    else:
        assert len(encode(rows, EXPLICIT, BYTES)) == 30


def test_a_template_that_refuses_the_turns_says_how_many(tmp_path: Path) -> None:
    system = {"role": "tool", "content": "cloudless"}
    rows = read(tmp_path, [{"chosen": [system, USER, BLUE], "rejected": [system, USER, GREEN]}]).rows

    with pytest.raises(TaskFailed, match="the model's chat template cannot render 1 of 1 pairs, the first of which is good row 1"):
        encode(rows, IMPLICIT, chat_tokenizer(MISTRAL))


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    rows = read(tmp_path, [{"chosen": [USER, BLUE], "rejected": [USER, GREEN]}]).rows

    with pytest.raises(TaskFailed, match="the tokenizer has no chat template"):
        encode(rows, IMPLICIT, BYTES)


@given(
    prompt=st.integers(1, 200), answers=st.tuples(st.integers(1, 120), st.integers(1, 120)), length=st.integers(8, 96).map(lambda n: 2 * n)
)
def test_both_answers_keep_the_same_end_of_the_prompt(prompt: int, answers: tuple[int, int], length: int) -> None:
    objective = Preference(prompt_column="prompt", max_length=length)
    texts = "".join(chr(97 + at % 26) for at in range(prompt)), "X" * answers[0], "Y" * answers[1]
    row = dict(zip(("prompt", "chosen", "rejected"), map(json.dumps, texts), strict=True))

    [pair] = encode([row], objective, BYTES)
    chosen, rejected = answers_of(pair)

    before = [one.input_ids[: next(at for at, label in enumerate(one.labels) if label != IGNORED)] for one in (chosen, rejected)]
    assert before[0] == before[1]
    assert texts[0].endswith(text_of(before[0]))
    assert max(len(one.input_ids) for one in (chosen, rejected)) <= length
    kept = max(length // 2, length - max(answers) - 1)
    assert len(before[0]) == min(prompt, kept)


TOKENS = st.lists(st.integers(0, 255), min_size=1, max_size=12)


@st.composite
def sides(draw: st.DrawFn) -> Example:
    prompt, answer = draw(TOKENS), draw(TOKENS)
    marks = [*[IGNORED] * len(prompt), *[one if draw(st.booleans()) else IGNORED for one in answer[:-1]], answer[-1]]
    return Example([*prompt, *answer], marks)


@given(pairs=st.lists(st.tuples(sides(), sides()), min_size=1, max_size=5), micro_batch=st.integers(1, 5))
def test_a_pair_is_one_sample_that_gives_both_its_answers_back(pairs: list[tuple[Example, Example]], micro_batch: int) -> None:
    joined = [join_answers(*pair) for pair in pairs]

    assert split_answers(joined) == [*(chosen for chosen, _ in pairs), *(rejected for _, rejected in pairs)]
    assert [len(one.input_ids) for one in joined] == [2 * max(len(a.input_ids), len(b.input_ids)) for a, b in pairs]
    assert [count_targets(one, IMPLICIT) for one in joined] == [1] * len(pairs)
    tokens, padding = count_tokens(joined, IMPLICIT), count_padding(joined, IMPLICIT, micro_batch)
    parts = [collate(joined[at : at + micro_batch], IMPLICIT, pad_id=0) for at in range(0, len(joined), micro_batch)]
    assert tokens == sum(int(part["attention_mask"].sum()) for part in parts)
    assert tokens + padding == sum(part["input_ids"].numel() for part in parts)
    assert all(len(part["input_ids"]) % 2 == 0 for part in parts)


def test_examples_keep_pairs_as_they_are(tmp_path: Path) -> None:
    pairs = ("Sky? Blue, of course.", "Sky? Red."), ("Why? So.", "Why? Then.")
    rows = read(tmp_path, [{"chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]).rows

    examples = encode(rows, IMPLICIT, BYTES)

    assert examples.lengths == [2 * len("Sky? Blue, of course.>"), 2 * len("Why? Then.>")]
    assert [text_of(one.input_ids) for one in split_answers(examples[:2])] == [
        "Sky? Blue, of course.",
        "Why? So.",
        "Sky? Red.",
        "Why? Then.",
    ]


def test_a_shown_pair_cuts_no_word_in_two() -> None:
    row = {"chosen": json.dumps("Sky? Blue."), "rejected": json.dumps("Sky? Blank.")}
    talk = {"chosen": json.dumps([USER, BLUE]), "rejected": json.dumps([USER, GREEN])}

    assert shown_pair(row, IMPLICIT) == ("Sky? ", "Blue.", "Blank.")
    assert shown_pair(talk, IMPLICIT) == ("user: Sky?", "It is blue.", "It is green.")
