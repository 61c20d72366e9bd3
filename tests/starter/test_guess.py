"""Which task `fedpipe init` guesses: for each form of data in each format of files, for each kind of model, and where nothing fits."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from data_files import FORMATS

from fedpipe_operator.starter import CannotTellError, Guess, Wanted, columns_of_site, guess_task
from fedpipe_trainer.contract.inspection import DataFacts, ModelFacts
from fedpipe_trainer.data.columns import look_at

DECODER: Final = ModelFacts(architecture="llama", kind="decoder", has_chat_template=True, positions=4096)
PLAIN_DECODER: Final = ModelFacts(architecture="gpt2", kind="decoder", positions=1024)
ENCODER: Final = ModelFacts(architecture="bert", kind="encoder", positions=512)
ENCODER_DECODER: Final = ModelFacts(architecture="t5", kind="encoder-decoder")
NOT_REACHED: Final = ModelFacts()
N: Final = 12
Rows = Sequence[dict[str, Any]]


def rows(**columns: Any) -> Rows:
    """Rows whose columns are functions of the row's number, lists that are repeated, or values."""

    def value(column: Any, at: int) -> Any:
        if callable(column):
            return column(at)
        return column[at % len(column)] if isinstance(column, tuple) else column

    return [{name: value(column, at) for name, column in columns.items()} for at in range(N)]


def sentence(at: int) -> str:
    return f"a note number {at}, all well"


def other(at: int) -> str:
    return f"another text of number {at}"


def turns(role: str, content: str, user: str, assistant: str) -> Any:
    return lambda at: [{role: user, content: sentence(at)}, {role: assistant, content: other(at)}]


CHAT: Final = rows(messages=turns("role", "content", "user", "assistant"))
SHARE_GPT: Final = rows(conversations=turns("from", "value", "human", "gpt"))
ALPACA: Final = rows(instruction=sentence, input="with a context", output=other)
COMPLETIONS: Final = rows(prompt=sentence, completion=other)
LABELLED: Final = rows(text=sentence, label=("spam", "ham"))
INTEGERS: Final = rows(text=sentence, label=(0, 1))
PAIRS: Final = rows(premise=sentence, hypothesis=other, label=("yes", "no"))
TWO_TEXTS: Final = rows(title=sentence, complaint=other, label=("yes", "no"))
NUMBERS: Final = rows(text=sentence, score=lambda at: at / 4)
QUESTIONS: Final = rows(context=sentence, question=other, answers=lambda at: {"text": [f"number {at}"], "answer_start": [2]})
TEXTS: Final = rows(text=sentence)
SEVERAL: Final = rows(text=sentence, labels=(["red", "blue"], ["red"], ["blue"]))
NOTE: Final = "text"

CASES: Final = {
    "chat": (CHAT, DECODER, {"type": "CausalLM", "format": "Messages"}),
    "ShareGPT": (SHARE_GPT, DECODER, {"type": "CausalLM", "format": "ShareGPT"}),
    "Alpaca": (ALPACA, DECODER, {"type": "CausalLM", "format": "Alpaca"}),
    "prompt and completion": (COMPLETIONS, DECODER, {"type": "CausalLM", "format": "PromptCompletion"}),
    "text and label": (LABELLED, ENCODER, {"type": "SequenceClassification", NOTE: "text", "label": "label", "labels": ["ham", "spam"]}),
    "integer labels": (INTEGERS, ENCODER, {"type": "SequenceClassification", NOTE: "text", "label": "label", "labels": ["0", "1"]}),
    "pairs": (
        PAIRS,
        ENCODER,
        {"type": "SequenceClassification", NOTE: "premise", "textPair": "hypothesis", "label": "label", "labels": ["no", "yes"]},
    ),
    "a number": (NUMBERS, ENCODER, {"type": "SequenceClassification", NOTE: "text", "label": "score", "problem": "Regression"}),
    "questions": (QUESTIONS, DECODER, {"type": "CausalLM", "format": "QuestionAnswering"}),
    "preferences": (
        rows(prompt=sentence, chosen=other, rejected=lambda at: f"a worse one of {at}"),
        DECODER,
        {"type": "Preference", "promptColumn": "prompt"},
    ),
    "preferred conversations": (
        rows(chosen=turns("role", "content", "user", "assistant"), rejected=turns("role", "content", "user", "assistant")),
        DECODER,
        {"type": "Preference"},
    ),
    "plain text": (TEXTS, DECODER, {"type": "CausalLM", "format": "Text", "packing": True}),
    "several labels": (
        SEVERAL,
        ENCODER,
        {"type": "SequenceClassification", NOTE: "text", "label": "labels", "problem": "MultiLabel", "labels": ["blue", "red"]},
    ),
}


def facts(path: Path) -> DataFacts:
    found = look_at(path)
    return DataFacts(train=str(path), rows=found.rows, bad_rows=found.bad_rows, is_whole=found.is_whole, columns=found.columns)


def guess(folder: Path, data: Rows, model: ModelFacts = DECODER, *, form: str = "jsonl", **wanted: str) -> Guess:
    return guess_task([facts(FORMATS[form](folder, data))], model, Wanted(**wanted))


def refusal(folder: Path, data: Rows, model: ModelFacts, **wanted: str) -> str:
    with pytest.raises(CannotTellError) as caught:
        guess(folder, data, model, **wanted)
    return str(caught.value)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_each_form_of_data_is_recognised_in_each_format(tmp_path: Path, case: str, form: str) -> None:
    data, model, expected = CASES[case]

    assert guess(tmp_path, data, model, form=form).fields == expected


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        (ALPACA, ENCODER_DECODER, {"type": "Seq2SeqLM", "format": "Alpaca"}),
        (COMPLETIONS, ENCODER_DECODER, {"type": "Seq2SeqLM", "format": "PromptCompletion"}),
        (QUESTIONS, ENCODER_DECODER, {"type": "Seq2SeqLM", "format": "QuestionAnswering"}),
        (LABELLED, DECODER, {"type": "SequenceClassification", "text": "text", "label": "label", "labels": ["ham", "spam"]}),
        (LABELLED, NOT_REACHED, {"type": "SequenceClassification", "text": "text", "label": "label", "labels": ["ham", "spam"]}),
        (CHAT, NOT_REACHED, {"type": "CausalLM", "format": "Messages"}),
        (rows(question=sentence, answer=other), DECODER, {"type": "CausalLM", "prompt": "{question}\n", "response": "{answer}"}),
        (rows(ID=str, Question=sentence, Answer=other), DECODER, {"type": "CausalLM", "prompt": "{Question}\n", "response": "{Answer}"}),
        (rows(user=sentence, assistant=other), DECODER, {"type": "CausalLM", "prompt": "{user}\n", "response": "{assistant}"}),
        (
            rows(**{"Customer Message": sentence, "Agent": ("Ann", "Bo"), "agentReply": other, "CSAT": (1, 2, 3)}),
            DECODER,
            {"type": "CausalLM", "prompt": "{Customer Message}\n", "response": "{agentReply}"},
        ),
        (
            rows(Frage=sentence, Antwort=other, Thema=("a", "b")),
            DECODER,
            {"type": "CausalLM", "prompt": "{Frage}\n", "response": "{Antwort}"},
        ),
        (rows(article=sentence, summary=other), ENCODER_DECODER, {"type": "Seq2SeqLM", "prompt": "{article}", "response": "{summary}"}),
        (
            rows(instruction=sentence, context=("", "more"), response=other, category=("open", "closed")),
            DECODER,
            {"type": "CausalLM", "prompt": "{instruction}\n", "response": "{response}"},
        ),
        (rows(instruction=sentence, output=other), DECODER, {"type": "CausalLM", "format": "Alpaca"}),
        (rows(body=sentence, id=str), DECODER, {"type": "CausalLM", "format": "Text", "packing": True, "text": "body"}),
        (rows(body=lambda at: f"今天天气很好{at}"), DECODER, {"type": "CausalLM", "format": "Text", "packing": True, "text": "body"}),
        (rows(text=sentence, lang=("en", "de")), DECODER, {"type": "CausalLM", "format": "Text", "packing": True}),
        (
            rows(content=sentence, perplexity=lambda at: at / 3),
            DECODER,
            {"type": "CausalLM", "format": "Text", "packing": True, "text": "content"},
        ),
        (
            rows(text=sentence, is_spam=(True, False)),
            DECODER,
            {"type": "SequenceClassification", "text": "text", "label": "is_spam", "labels": ["false", "true"]},
        ),
        (
            rows(text=sentence, lang=("en", "de")),
            ENCODER,
            {"type": "SequenceClassification", "text": "text", "label": "lang", "labels": ["de", "en"]},
        ),
        (
            rows(chat=turns("role", "content", "user", "assistant"), tools=lambda _: [{"name": "look"}]),
            DECODER,
            {"type": "CausalLM", "format": "Messages", "messages": "chat", "tools": "tools"},
        ),
        (
            rows(review=lambda at: {"body": sentence(at), "stars": 1 + at % 3}),
            ENCODER,
            {"type": "SequenceClassification", "text": "review.body", "label": "review.stars", "labels": ["1", "2", "3"]},
        ),
        (
            rows(id=str, sentence=sentence, is_ok=(True, False)),
            ENCODER,
            {"type": "SequenceClassification", "text": "sentence", "label": "is_ok", "labels": ["false", "true"]},
        ),
        (
            rows(text=sentence, label=lambda at: at * 10),
            ENCODER,
            {"type": "SequenceClassification", "text": "text", "label": "label", "problem": "Regression"},
        ),
    ],
)
def test_the_model_and_the_names_of_columns_decide_where_the_data_allow_two_tasks(
    tmp_path: Path, data: Rows, model: ModelFacts, expected: dict[str, object]
) -> None:
    assert guess(tmp_path, data, model).fields == expected


def test_of_several_columns_that_may_be_answers_none_is_taken_for_the_other_s_input(tmp_path: Path) -> None:
    graded = rows(question=sentence, first_answer=other, second_answer=lambda at: f"a third text of {at}", grade=(0, 1))

    assert guess(tmp_path, graded, DECODER).fields["type"] == "SequenceClassification"


def test_a_name_that_no_template_takes_is_in_none(tmp_path: Path) -> None:
    odd = rows(**{"user: text": sentence, "answer": other, "kind": (0, 1)})

    assert guess(tmp_path, odd, DECODER).fields["type"] == "SequenceClassification"


TURNS: Final = rows(conversation_id=lambda at: at // 2, role=("user", "assistant"), content=sentence)


def test_rows_that_are_single_turns_are_refused_unless_their_texts_are_meant(tmp_path: Path) -> None:
    message = refusal(tmp_path, TURNS, DECODER)

    assert message.startswith(
        "'role' says who wrote 'content': each row is one turn, and no answer stands beside what it answers. To train"
    )
    assert guess(tmp_path, TURNS, DECODER, text="content").fields["format"] == "Text"
    assert guess(tmp_path, TURNS, ENCODER).fields["label"] == "role"
    authors = rows(author=("Ann", "Bo"), content=sentence)
    assert guess(tmp_path, authors, DECODER).fields["format"] == "Text"


def test_two_texts_of_unknown_names_are_a_pair_and_the_other_reading_is_told(tmp_path: Path) -> None:
    found = guess(tmp_path, TWO_TEXTS, ENCODER)

    assert {found.fields["text"], found.fields["textPair"]} == {"title", "complaint"}
    assert "if the two texts do not belong together, remove textPair" in found.instead[0]


def test_numbers_that_may_be_amounts_are_labels_and_the_other_reading_is_told(tmp_path: Path) -> None:
    found = guess(tmp_path, rows(text=sentence, stars=(1, 2, 3, 4)), ENCODER)

    assert found.fields["labels"] == ["1", "2", "3", "4"]
    assert found.instead == ("if the numbers are amounts (stars, degrees), predict them: problem: Regression, without labels",)


def test_labels_that_differ_by_case_only_are_told(tmp_path: Path) -> None:
    found = guess(tmp_path, rows(text=sentence, label=("Red", "red ")), ENCODER)

    assert found.instead == ("some labels differ by upper and lower case only: if they are the same, correct the data",)


def test_columns_that_the_user_names_are_taken(tmp_path: Path) -> None:
    data = rows(text=sentence, remark=other, label=("a", "b"), area=("north", "south"))

    found = guess(tmp_path, data, DECODER, text="remark", label="area")

    assert found.fields == {"type": "SequenceClassification", "text": "remark", "label": "area", "labels": ["north", "south"]}
    assert guess(tmp_path, data, DECODER, text="remark").fields == found.fields | {"label": "label", "labels": ["a", "b"]}
    two_texts = rows(body=sentence, remark=other)
    assert guess(tmp_path, two_texts, DECODER, text="remark").fields == {
        "type": "CausalLM",
        "format": "Text",
        "packing": True,
        "text": "remark",
    }


def test_labels_are_left_out_where_some_may_not_have_been_seen(tmp_path: Path) -> None:
    with_a_single_one = [*LABELLED, {"text": "the last one of all", "label": "rare"}]

    found = guess(tmp_path, with_a_single_one, ENCODER)

    assert "labels" not in found.fields
    assert found.labels_note.startswith("labels is left out, since some values are in one row only")


def test_labels_of_all_sites_are_declared_and_only_columns_that_all_have_are_read(tmp_path: Path) -> None:
    north = facts(FORMATS["jsonl"](tmp_path / "north", rows(text=sentence, label=("a", "b"), more=other)))
    south = facts(FORMATS["csv"](tmp_path / "south", rows(text=sentence, label=("b", "c"))))

    found = guess_task([north, south], ENCODER, Wanted())

    assert found.fields["labels"] == ["a", "b", "c"]
    assert found.columns == ("text", "label")


def test_sites_without_a_common_column_are_refused_with_what_each_has(tmp_path: Path) -> None:
    north = facts(FORMATS["jsonl"](tmp_path / "north", rows(text=sentence)))
    south = facts(FORMATS["jsonl"](tmp_path / "south", rows(body=sentence)))

    with pytest.raises(CannotTellError, match=r"no column in common: .*'text' \(text\).*'body' \(text\).*Rename the columns"):
        guess_task([north, south], DECODER, Wanted())


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (CHAT, ENCODER, "has conversations, and the bert model is an encoder, which writes no text: give a decoder"),
        (CHAT, ENCODER_DECODER, "the t5 model is an encoder-decoder, which the chat formats are not for: give a decoder"),
        (CHAT, PLAIN_DECODER, "the tokenizer of the gpt2 model has no chat template: give a model that was trained for chat, or add"),
        (
            ALPACA,
            ENCODER,
            "the data have instruction, input and output, and the bert model is an encoder, which writes no text: give a decoder",
        ),
        (TEXTS, ENCODER, "the bert model is an encoder, and only a decoder learns from plain text: give a decoder, or name --label"),
        (rows(prompt=sentence, chosen=sentence, rejected=other), ENCODER, "and the bert model is an encoder: give a decoder, which writes"),
        (
            rows(chosen=turns("role", "content", "user", "assistant"), rejected=turns("role", "content", "user", "assistant")),
            PLAIN_DECODER,
            "the column 'chosen' has conversations, and the tokenizer of the gpt2 model has no chat template",
        ),
        (
            rows(a=1, b=2.5),
            DECODER,
            "no task is known for these columns: 'a' (number, 1 different), 'b' (number): name the columns by --text",
        ),
        (rows(id=str, when="2026-01-01"), ENCODER, "and so needs a column with labels: name the columns by --text and --label"),
    ],
)
def test_data_that_no_task_or_not_this_model_is_for_are_refused_with_what_was_seen(
    tmp_path: Path, data: Rows, model: ModelFacts, message: str
) -> None:
    assert message in refusal(tmp_path, data, model)


def test_a_column_that_has_no_labels_is_refused_by_its_numbers(tmp_path: Path) -> None:
    message = refusal(tmp_path, rows(text=sentence, code=str), ENCODER, label="text")

    assert message.startswith("'text' has 12 different values in 12 rows, which are no labels (")


@pytest.mark.parametrize("name", ["label", "score", "price"])
def test_numbers_that_are_too_large_for_a_regression_are_to_be_scaled(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, rows(**{"text": sentence, name: lambda at: 0.5 - at * 1000}), ENCODER)

    assert message.startswith(f"{name!r} has numbers up to 10999.5 in size, and those of a regression are at most 1000: scale the column")
    assert refusal(tmp_path, TEXTS, DECODER, label="lable").startswith("there is no column 'lable': the data have 'text' (text)")


def test_nothing_of_a_cell_is_in_a_refusal(tmp_path: Path) -> None:
    canary = "c4n4ry"
    data = rows(prompt=lambda at: f"{canary} {at}", chosen=canary, rejected=canary)

    for model in (ENCODER, ENCODER_DECODER):
        assert canary not in refusal(tmp_path, data, model)


GRADED: Final = {
    "KTO": rows(prompt=sentence, completion=other, label=(True, False)),
    "in a table": rows(prompt=sentence, completion=other, label=("True", "False")),
    "numbers": rows(prompt=sentence, completion=other, is_desirable=(1, 0)),
    "conversations": rows(
        prompt=lambda at: [{"role": "user", "content": sentence(at)}],
        completion=lambda at: [{"role": "assistant", "content": other(at)}],
        label=(True, False),
    ),
    "responses": rows(prompt=sentence, response=other, label=(1, 0)),
    "outputs": rows(instruction=sentence, input="", output=other, label=("good", "bad")),
    "good ones alone": rows(prompt=sentence, completion=other, label=True),
}


@pytest.mark.parametrize("form", GRADED)
def test_answers_that_are_graded_are_not_trained_good_and_bad(tmp_path: Path, form: str) -> None:
    grade = "is_desirable" if form == "numbers" else "label"

    answer = {"responses": "response", "outputs": "output"}.get(form, "completion")

    assert refusal(tmp_path, GRADED[form], DECODER).startswith(f"{grade!r} says of each {answer!r} whether it is a good one (as for KTO)")
    if form in {"KTO", "numbers"}:
        assert guess(tmp_path, GRADED[form], DECODER, label=grade).fields["label"] == grade


@pytest.mark.parametrize("verdict", ["winner", "preference", "better_response", "label"])
@pytest.mark.parametrize(
    "answers", [("response_a", "response_b"), ("answer1", "answer2"), ("Output A", "Output B"), ("completion_0", "completion_1")]
)
@pytest.mark.parametrize("model", [DECODER, ENCODER])
def test_two_answers_with_a_verdict_are_no_classification_of_their_prompt(
    tmp_path: Path, model: ModelFacts, answers: tuple[str, str], verdict: str
) -> None:
    data = rows(prompt=sentence, **{answers[0]: other, answers[1]: lambda at: f"a third text of {at}", verdict: ("a", "b", "tie")})

    message = refusal(tmp_path, data, model)

    assert message.startswith(f"{verdict!r} says which of {answers[0]!r} and {answers[1]!r} is better")
    assert "write each row with prompt, chosen and rejected" in message
    assert guess(tmp_path, data, model, label=verdict, text="prompt").fields["label"] == verdict


def test_two_conversations_with_a_verdict_are_not_trained_as_one(tmp_path: Path) -> None:
    chats = {f"conversation_{side}": turns("role", "content", "user", "assistant") for side in "ab"}

    assert "is better" in refusal(tmp_path, rows(**chats, winner=("model_a", "model_b")), DECODER)


def test_pairs_of_texts_with_a_label_are_still_a_classification(tmp_path: Path) -> None:
    for names in (("text1", "text2"), ("sentence_a", "sentence_b"), ("question", "answer")):
        data = rows(**{names[0]: sentence, names[1]: other, "label": (0, 1)})
        assert guess(tmp_path, data, ENCODER).fields["type"] == "SequenceClassification"


@pytest.mark.parametrize("model", [DECODER, ENCODER])
@pytest.mark.parametrize("values", [(0, 1), (False, True)])
def test_several_columns_of_flags_are_named_where_one_is_predicted(
    tmp_path: Path, model: ModelFacts, values: tuple[object, object]
) -> None:
    found = guess(tmp_path, rows(comment=sentence, toxic=values, obscene=values, threat=values), model)

    assert (found.fields["type"], found.fields["label"]) == ("SequenceClassification", "toxic")
    (note,) = found.instead
    assert note.startswith(
        "'toxic' alone is predicted. If it and 'obscene', 'threat' are labels of one text, write one column with the list"
    )
    assert note.endswith("and predict that: problem: MultiLabel")


@pytest.mark.parametrize(
    ("data", "unread"),
    [
        (rows(prompt=sentence, completion=other, system="be kind", tools='[{"name": "look"}]'), "'system', 'tools'"),
        (rows(question=sentence, answer=other, history=lambda _: [["a", "b"]]), "'history'"),
    ],
)
def test_columns_that_belong_to_a_row_and_are_not_read_are_named(tmp_path: Path, data: Rows, unread: str) -> None:
    assert f"not read: {unread}. What of it the model needs has to be in the columns that are read" in guess(tmp_path, data).instead


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_translations_are_made_from_the_first_language_into_the_second(tmp_path: Path, form: str) -> None:
    data = rows(translation=lambda at: {"en": sentence(at), "de": other(at)})

    found = guess(tmp_path, data, ENCODER_DECODER, form=form)

    assert found.fields == {"type": "Seq2SeqLM", "prompt": "{translation.en}", "response": "{translation.de}"}
    assert found.columns == ("translation.en", "translation.de")
    assert found.instead == ("to translate into 'translation.en', exchange prompt and response",)


def test_texts_beside_functions_are_no_plain_texts(tmp_path: Path) -> None:
    data = rows(query=sentence, answers=lambda _: json.dumps([{"name": "f", "arguments": {}}]), tools=json.dumps([{"name": "f"}]))

    assert refusal(tmp_path, data, DECODER).startswith(
        "'tools' has functions that a model may call, and no column has conversations in which it does: make a column messages of each row"
    )
    assert guess(tmp_path / "named", data, text="query").fields["format"] == "Text"


def test_a_table_that_may_have_no_header_is_told(tmp_path: Path) -> None:
    data = rows(**{"the first note": sentence, "spam": ("spam", "ham")})

    found = guess(tmp_path, data, ENCODER, form="csv")

    assert found.instead == ("'spam' is a value of its own column, too: if the file has no header, write one as its first line",)


EXCHANGES: Final = ([["earlier", "said"]], [], None)
ANSWERS: Final = {"question": sentence, "chosen": other, "rejected": lambda at: f"worse {at}"}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("data", "read"),
    [
        (rows(instruction=sentence, input="", output=other, system="be kind", history=EXCHANGES), ("system", "history")),
        (rows(instruction=sentence, output=other, history=EXCHANGES), ("history",)),
        (rows(system=("be kind", ""), conversations=turns("from", "value", "human", "gpt")), ("system",)),
        (rows(system="be kind", messages=turns("role", "content", "user", "assistant")), ("system",)),
        (rows(**ANSWERS, system="be kind"), ("system",)),
    ],
)
def test_a_column_that_a_format_reads_where_it_is_there_is_read(tmp_path: Path, data: Rows, read: tuple[str, ...], form: str) -> None:
    found = guess(tmp_path, data, form=form)
    [one] = [facts(FORMATS[form](tmp_path / "again", data))]

    assert found.optional == read
    assert columns_of_site(found, one) == (*found.columns, *read)
    assert f"Read, too, where a row has it: {', '.join(map(repr, read))}" in found.why
    assert found.instead == ()
    assert found.characters > guess(tmp_path / "without", [{k: v for k, v in row.items() if k not in read} for row in data]).characters


def test_each_site_s_policy_has_the_columns_of_its_own_data(tmp_path: Path) -> None:
    alone = rows(messages=turns("role", "content", "user", "assistant"))
    sites = [
        facts(FORMATS["jsonl"](tmp_path / name, data))
        for name, data in {"a": alone, "b": [{**row, "system": "s"} for row in alone]}.items()
    ]

    found = guess_task(sites, DECODER, Wanted())

    assert [columns_of_site(found, one) for one in sites] == [("messages",), ("messages", "system")]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("history", [{"role": "user", "content": "a"}], "pairs of texts, each a prompt and its response"),
        ("history", ["a", "b"], "pairs of texts, each a prompt and its response"),
        ("history", [["a"]], "pairs of texts, each a prompt and its response"),
        ("history", "an earlier one", "pairs of texts, each a prompt and its response"),
        ("system", 5, "texts"),
        ("system", {"text": "be kind"}, "texts"),
        ("system", ["be kind"], "texts"),
    ],
)
def test_a_column_that_the_format_would_read_and_cannot_is_left_out_and_named(
    tmp_path: Path, column: str, values: object, expected: str
) -> None:
    found = guess(tmp_path, rows(instruction=sentence, output=other, **{column: lambda _: values}))

    assert found.optional == ()
    assert found.instead == (
        f"not read: {column!r}, which has no {expected}. Make such of it, and add it to policy.columns of each site that has it",
    )


@pytest.mark.parametrize("spell", [json.dumps, repr])
def test_lists_that_a_table_has_as_json_or_as_python_spells_them_are_lists(tmp_path: Path, spell: Callable[[Any], str]) -> None:
    """pandas writes a column of lists as Python spells it."""
    lists = {
        "messages": lambda at: spell([{"role": "user", "content": sentence(at)}, {"role": "assistant", "content": other(at)}]),
        "tools": spell([{"name": "look"}]),
    }

    assert guess(tmp_path, rows(**lists), form="csv").fields == {"type": "CausalLM", "format": "Messages", "tools": "tools"}
    labels = guess(
        tmp_path / "labels", rows(text=sentence, labels=(spell(["red", "blue"]), spell(["red"]), spell(["blue"]))), ENCODER, form="csv"
    )
    assert (labels.fields["problem"], labels.fields["labels"]) == ("MultiLabel", ["blue", "red"])


@pytest.mark.parametrize("form", FORMATS)
def test_functions_may_be_texts_in_a_list(tmp_path: Path, form: str) -> None:
    """A column of parquet has objects of one form only, so functions are often kept as their JSON."""
    chat = rows(
        messages=turns("role", "content", "user", "assistant"), tools=lambda _: ['{"name": "look"}', '{"name": "go", "parameters": {}}']
    )

    assert guess(tmp_path, chat, form=form).fields == {"type": "CausalLM", "format": "Messages", "tools": "tools"}


@pytest.mark.parametrize("nothing", [[], "[]", None, ""])
def test_tools_without_any_function_are_no_tools(tmp_path: Path, nothing: object) -> None:
    found = guess(tmp_path, rows(messages=turns("role", "content", "user", "assistant"), tools=lambda _: nothing))

    assert (found.fields, found.instead) == ({"type": "CausalLM", "format": "Messages"}, ())
