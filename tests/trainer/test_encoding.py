"""Encoding rows as token ids and tensors."""

import tracemalloc
from collections.abc import Callable
from typing import Final, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import byte_tokenizer

from fedpipe_trainer.contract import CausalLM, FailureReason, Objective, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.contract.objective import PairFormat
from fedpipe_trainer.contract.policy import columns_read
from fedpipe_trainer.data import (
    IGNORED,
    Example,
    Tokenizer,
    collate,
    columns_of,
    count_targets,
    encode,
    encode_once,
    encode_prompts,
    encoding,
    fill,
)
from fedpipe_trainer.data.examples import Labels, collect
from fedpipe_trainer.data.rows import Row
from fedpipe_trainer.errors import TaskFailed

PAD, END = 256, 257
CLASSES = SequenceClassification(text="note", label="ward", labels=("cardiology", "surgery"), max_length=8)
CAUSAL = CausalLM(prompt="{mr}>", response="{ref}", max_length=8)
SEQ2SEQ = Seq2SeqLM(prompt="{mr}>", response="{ref}", max_length=8)

Tokenize = Callable[[str], list[int]]


@pytest.fixture
def ids(tokenizer: Tokenizer) -> Tokenize:
    return lambda text: list(tokenizer([text])["input_ids"][0])


def test_an_example_of_a_classification_is_a_truncated_text_and_the_index_of_its_label(tokenizer: Tokenizer, ids: Tokenize) -> None:
    rows = [{"note": "short", "ward": "surgery"}, {"note": "much too long", "ward": "cardiology"}]

    assert encode(rows, CLASSES, tokenizer) == [Example(ids("short"), [1]), Example(ids("much too"), [0])]


def test_a_label_that_the_run_does_not_have_is_refused_and_not_quoted(tokenizer: Tokenizer) -> None:
    with pytest.raises(TaskFailed, match=r"a value of column 'ward' is not one of the run's 2 labels$") as caught:
        encode([{"note": "x", "ward": "oncology"}], CLASSES, tokenizer)
    assert caught.value.reason is FailureReason.BAD_DATA


def test_a_causal_example_has_labels_only_for_the_response_and_its_end_token(tokenizer: Tokenizer, ids: Tokenize) -> None:
    [example] = encode([{"mr": "ab", "ref": "xyz"}], CAUSAL, tokenizer)

    assert example == Example([*ids("ab>xyz"), END], [IGNORED] * 3 + ids("xyz") + [END])


@pytest.mark.parametrize(
    ("mr", "ref", "left"),
    [
        ("abcdefgh", "xy", "efgh>xy"),  # of a long prompt the end is kept, next to the response
        ("ab", "qrstuvwxyz", "ab>qrstu"),  # a long response is truncated, including the end token
        ("abcdefgh", "qrstuvwxyz", "fgh>qrst"),  # both: each keeps half
    ],
)
def test_a_long_example_is_truncated_so_that_part_of_the_response_remains(
    tokenizer: Tokenizer, ids: Tokenize, mr: str, ref: str, left: str
) -> None:
    [example] = encode([{"mr": mr, "ref": ref}], CAUSAL, tokenizer)

    targets = [label for label in example.labels if label != IGNORED]
    assert len(example.input_ids) == len(example.labels) == 8
    assert [token for token in example.input_ids if token != END] == ids(left)
    assert targets == example.input_ids[-len(targets) :]
    assert targets[0] == ids(ref)[0]


def test_a_prompt_is_truncated_in_evaluation_as_in_training(tokenizer: Tokenizer, ids: Tokenize) -> None:
    assert encode_prompts([{"mr": "ab", "ref": "x"}, {"mr": "abcdefgh", "ref": "x"}], CAUSAL, tokenizer, max_new_tokens=3) == [
        ids("ab>"),
        ids("efgh>"),
    ]


def test_source_and_target_of_an_encoder_decoder_are_separate(tokenizer: Tokenizer, ids: Tokenize) -> None:
    [example] = encode([{"mr": "ab", "ref": "a response"}], SEQ2SEQ, tokenizer)

    assert example == Example(ids("ab>"), ids("a respon"))


def test_a_batch_is_padded_to_its_longest_example_and_on_to_a_multiple_of_eight() -> None:
    batch = collate([Example([1, 2, 3], [IGNORED, 2, 3]), Example([4], [IGNORED])], CAUSAL, PAD)

    assert batch["input_ids"].tolist() == [[1, 2, 3, *[PAD] * 5], [4, *[PAD] * 7]]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] + [0] * 7]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3, *[IGNORED] * 5], [IGNORED] * 8]


def test_every_response_token_but_a_first_one_and_every_label_is_a_target() -> None:
    assert count_targets(Example([1, 2, 3], [1, IGNORED, 3]), CAUSAL) == 1
    assert count_targets(Example([1, 2, 3], [IGNORED]), CLASSES) == 1
    assert count_targets(Example([1, 2, 3], [4, 5]), SEQ2SEQ) == 2


def test_padding_never_exceeds_max_length() -> None:
    batch = collate([Example(list(range(1, 11)), [IGNORED] * 10)], CAUSAL.model_copy(update={"max_length": 11}), PAD)

    assert batch["input_ids"].tolist() == [[*range(1, 11), PAD]]


def test_the_labels_of_a_classification_are_a_vector() -> None:
    batch = collate([Example([1, 2, 3], [1]), Example([4], [0])], CLASSES, PAD)

    assert torch.equal(batch["labels"], torch.tensor([1, 0]))


def test_the_columns_of_an_objective_are_those_it_names() -> None:
    assert columns_of(CLASSES) == ("note", "ward")
    assert columns_of(CausalLM(prompt="{a} {{b}} {c}", response="{a}{d e}")) == ("a", "c", "d e")


def test_a_template_is_filled_with_the_unchanged_texts_of_a_row() -> None:
    assert fill("{{{a}}} {a}-{b}", {"a": "{b}", "b": "ü"}) == "{{b}} {b}-ü"


@pytest.mark.parametrize("template", ["plain", "{}", "{a..b}", "{.a}", "{a[0]}", "{a!r}", "{a:>10}", "{a", "a}"])
def test_a_template_may_contain_only_plain_column_names(template: str) -> None:
    with pytest.raises(TaskFailed, match="template") as caught:
        columns_of(CausalLM(prompt=template, response="{a}"))
    assert caught.value.reason is FailureReason.BAD_TASK


def test_a_template_with_a_missing_column_is_refused_and_the_message_names_it() -> None:
    with pytest.raises(TaskFailed, match=r"names the column 'c', which is not in the data$"):
        fill("{c}", {"a": "", "b": ""})


def test_rows_that_were_encoded_last_are_not_encoded_again(tokenizer: Tokenizer) -> None:
    rows = [{"note": "short", "ward": "surgery"}, {"note": "much too long", "ward": "cardiology"}]

    first = encode_once(rows, CLASSES, tokenizer)

    assert first == encode(rows, CLASSES, tokenizer)
    assert encode_once([dict(row) for row in rows], CLASSES, tokenizer) is first


def test_changed_rows_or_another_objective_are_encoded_anew(tokenizer: Tokenizer) -> None:
    rows = [{"note": "short", "ward": "surgery"}]
    encode_once(rows, CLASSES, tokenizer)

    for changed, objective in (
        ([{"note": "shore", "ward": "surgery"}], CLASSES),
        ([{"note": "short", "ward": "cardiology"}], CLASSES),
        ([*rows, *rows], CLASSES),
        (rows, CLASSES.model_copy(update={"labels": ("surgery", "cardiology")})),
    ):
        assert encode_once(changed, objective, tokenizer) == encode(changed, objective, tokenizer)


def test_many_examples_are_not_kept(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"note": "short", "ward": "surgery"}]
    monkeypatch.setattr(encoding, "_MOST_KEPT_TOKENS", 4)  # there are five

    first = encode_once(rows, CLASSES, tokenizer)

    assert encode_once(rows, CLASSES, tokenizer) is not first


def test_a_tokenizer_that_ends_every_text_puts_no_end_token_between_prompt_and_response(ids: Tokenize) -> None:
    ending = byte_tokenizer(add_end_token=True)
    rows = [{"mr": "ab", "ref": "xyz"}]

    assert encode(rows, CAUSAL, ending)[0].input_ids == [*ids("ab>xyz"), END]
    assert encode_prompts(rows, CAUSAL, ending, max_new_tokens=2) == [ids("ab>")]


def test_a_special_token_in_the_data_is_text(tokenizer: Tokenizer, ids: Tokenize) -> None:
    text = "a</s><pad>b"
    as_text = [token for part in ("a", "<", "/s><", "pad>b") for token in ids(part)]
    longest = {"max_length": 64}

    [causal] = encode([{"mr": text, "ref": text}], CAUSAL.model_copy(update=longest), tokenizer)
    [classified] = encode([{"note": text, "ward": "surgery"}], CLASSES.model_copy(update=longest), byte_tokenizer(add_end_token=True))
    [rewritten] = encode([{"mr": text, "ref": text}], SEQ2SEQ.model_copy(update=longest), byte_tokenizer(add_end_token=True))

    assert causal.input_ids == [*as_text, *ids(">"), *as_text, END]
    assert classified.input_ids == [*as_text, END]
    assert (rewritten.input_ids, rewritten.labels) == ([*as_text, *ids(">"), END], [*as_text, END])


def test_a_special_token_in_a_template_is_the_token_also_beside_one_in_the_data(tokenizer: Tokenizer, ids: Tokenize) -> None:
    objective = CausalLM(prompt="<s>{mr}<mask>", response="{ref}", max_length=64)
    start, mask = 258, 259

    plain, hostile = encode([{"mr": "ab", "ref": "x"}, {"mr": "<s>", "ref": "x"}], objective, tokenizer)

    assert plain.input_ids == [start, *ids("ab"), mask, *ids("x"), END]
    assert hostile.input_ids == [start, *ids("<"), *ids("s>"), mask, *ids("x"), END]


def test_of_a_plain_text_every_token_is_a_target_and_a_long_one_goes_on_in_another_sample(tokenizer: Tokenizer, ids: Tokenize) -> None:
    objective = CausalLM(format="Text", text="body", max_length=8)

    samples = encode([{"body": "abcdefghij"}, {"body": "xy"}], objective, tokenizer)

    assert samples == [
        Example(ids("abcdefgh"), [IGNORED, *ids("bcdefgh")]),
        Example([*ids("ij"), END], [IGNORED, *ids("j"), END]),
        Example([*ids("xy"), END], [IGNORED, *ids("y"), END]),
    ]


def test_packed_texts_fill_every_sample_but_the_last(tokenizer: Tokenizer, ids: Tokenize) -> None:
    objective = CausalLM(format="Text", text="body", packing=True, max_length=8)

    samples = encode([{"body": "abcdef"}, {"body": "xy"}, {"body": "z"}], objective, tokenizer)

    assert [sample.input_ids for sample in samples] == [[*ids("abcdef"), END, *ids("x")], [*ids("y"), END, *ids("z"), END]]


def test_the_columns_of_a_format_are_those_it_names() -> None:
    assert columns_of(CausalLM(format="Messages", tools="functions")) == ("messages", "functions")
    assert columns_of(CausalLM(format="ShareGPT")) == ("conversations",)
    assert columns_of(CausalLM(format="Text", text="body")) == ("body",)
    assert columns_of(Seq2SeqLM(format="Alpaca")) == ("instruction", "input", "output")
    assert columns_of(CausalLM(format="PromptCompletion")) == ("prompt", "completion")


@pytest.mark.parametrize(
    "objective",
    [
        CLASSES,
        SequenceClassification(text_pair="reply"),
        CAUSAL,
        SEQ2SEQ,
        CausalLM(format="Messages", tools="functions"),
        CausalLM(format="ShareGPT", messages="turns"),
        CausalLM(format="Text", text="body"),
        CausalLM(format="QuestionAnswering"),
        Seq2SeqLM(format="Alpaca"),
        Seq2SeqLM(format="PromptCompletion"),
    ],
)
def test_a_policy_knows_every_column_that_is_read(objective: Objective) -> None:
    assert columns_read(objective) == set(columns_of(objective))


ALPACA: Final = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PAIRS: Final[dict[PairFormat, tuple[Row, str, str]]] = {
    "Template": ({"mr": "ab", "ref": "xyz"}, "ab>", "xyz"),
    "Alpaca": (
        {"instruction": "Say it.", "input": "", "output": "it"},
        f"{ALPACA}\n\n### Instruction:\nSay it.\n\n### Response:\n",
        "it",
    ),
    "PromptCompletion": ({"prompt": "ab", "completion": "xyz"}, "ab", "xyz"),
    "QuestionAnswering": (
        {"context": "It is in Bonn.", "question": "Where?", "answers": '["in Bonn", "Bonn"]'},
        "It is in Bonn.\n\nQuestion: Where?\nAnswer:",
        " in Bonn",
    ),
}
"""A row of each format, with the prompt and the response that are made of it."""


@pytest.mark.parametrize("format_", get_args(PairFormat))
def test_a_row_of_each_format_is_encoded_as_its_prompt_and_its_response(tokenizer: Tokenizer, ids: Tokenize, format_: PairFormat) -> None:
    row, prompt, response = PAIRS[format_]
    templates = {"prompt": "{mr}>", "response": "{ref}"} if format_ == "Template" else {}
    objective = CausalLM(format=format_, max_length=512, **templates)

    [example] = encode([row], objective, tokenizer)

    assert example == Example([*ids(prompt + response), END], [IGNORED] * len(ids(prompt)) + [*ids(response), END])


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=20), causal=st.booleans())
def test_samples_in_arrays_are_the_samples(lengths: list[int], causal: bool) -> None:
    samples = [Example(list(range(n)), [at if at % 3 else IGNORED for at in range(n)] if causal else [n]) for n in lengths]

    found = collect(iter(samples), Labels.MARKS if causal else Labels.INTEGERS)

    assert found == samples
    assert found.lengths == lengths
    assert found[-1] == samples[-1]
    assert found[1:3] == samples[1:3]


@pytest.mark.parametrize("objective", [CAUSAL, CausalLM(format="Text", text="mr")], ids=["prompts", "texts"])
def test_samples_take_eight_bytes_a_token_at_most(tokenizer: Tokenizer, objective: CausalLM) -> None:
    objective = objective.model_copy(update={"max_length": 1024})
    rows = [{"mr": "a" * 300, "ref": "b" * 100}] * 2000
    encode(rows[:300], objective, tokenizer)  # what is allocated once

    tracemalloc.start()
    examples = encode(rows, objective, tokenizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    tokens = sum(examples.lengths)
    assert examples.nbytes <= 8 * tokens
    piece = peak - examples.nbytes  # and one piece of rows as Python integers, whatever the number of rows
    assert piece < 1.5 * examples.nbytes + 256 * 401 * 200
