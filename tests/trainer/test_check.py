"""What `fedpipe validate --data` finds of a site: all that a profile would fail for, before any weight is loaded."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from chat_templates import CHATML, GEMMA

from fedpipe_trainer.contract import (
    CausalLM,
    Data,
    DataPolicy,
    FailureReason,
    Model,
    Objective,
    Preference,
    ProfileTask,
    RunRef,
    SequenceClassification,
)
from fedpipe_trainer.contract.inspection import FileCheck, SiteCheck
from fedpipe_trainer.data import Bounds
from fedpipe_trainer.data.readers import FirstRecords
from fedpipe_trainer.recipes import check as module
from fedpipe_trainer.recipes.check import check_site
from fedpipe_trainer.task_runtime import TaskRuntime

Toy = Callable[[str], Path]
CLASSES: Final = SequenceClassification(labels=("high", "low"), max_length=16)
CHAT: Final = CausalLM(format="Messages", max_length=64)


def rows(count: int = 8) -> list[dict[str, Any]]:
    return [{"text": f"note {at}", "label": ("high", "low")[at % 2]} for at in range(count)]


def turns(*roles: str) -> list[dict[str, Any]]:
    return [{"messages": [{"role": role, "content": f"say {at}"} for role in roles]} for at in range(6)]


CALLS: Final = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]}
] * 6


def check(  # noqa: PLR0913 -- what a site has, and what is asked of it
    folder: Path,
    model: Path | str | Model,
    objective: Objective = CLASSES,
    train: list[dict[str, Any]] | str = "",
    *,
    first_rows: bool = False,
    model_in_claim: bool = False,
    **changes: Any,
) -> SiteCheck:
    """Check a site with these training rows (or this text of the file), which are the validation rows, too."""
    written = train or rows()
    text = written if isinstance(written, str) else "".join(json.dumps(row) + "\n" for row in written)
    for part in ("train", "validation"):
        (folder / f"{part}.jsonl").write_text(text)
    source = model.as_uri() if isinstance(model, Path) else model
    task = ProfileTask(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="ward",
        model=Model(source=source) if isinstance(source, str) else source,
        objective=objective,
        data=Data(train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl")),
        bits=(16,),
        result="file:///dev/null",
        **({"contributors": 2} | changes),
    )
    scratch = folder / "scratch"
    scratch.mkdir()
    runtime = TaskRuntime(scratch, folder / "cache", write_progress=lambda _: None, stop_requested=lambda: False)
    return check_site(task, runtime, first_rows=first_rows, model_in_claim=model_in_claim)


def with_template(model: Path, template: str, folder: Path) -> Path:
    """A copy of the model with this chat template."""
    shutil.copytree(model, folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(template)
    return folder / "model"


def reasons(found: SiteCheck) -> list[FailureReason]:
    return [failure.reason for failure in found.failures]


@pytest.fixture(autouse=True)
def _no_weight_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_trainer.model.base.load", lambda *_: pytest.fail("weights are loaded"))


def test_a_good_site_is_counted(tmp_path: Path, toy: Toy) -> None:
    found = check(tmp_path, toy("bert"))

    assert (found.failures, found.warnings) == ((), ())
    assert found.train == FileCheck(rows=8, labels={"high": 4, "low": 4})
    assert found.tokens is not None
    assert (found.tokens.samples, found.tokens.longest, found.tokens.cut) == (8, 6, 0)


def test_rows_that_are_left_out_are_told_with_the_first_line(tmp_path: Path, toy: Toy) -> None:
    good = "".join(json.dumps(row) + "\n" for row in rows(200))

    found = check(tmp_path, toy("bert"), train=good + '{"text": "", "label": "low"}\n')

    assert found.failures == ()
    assert found.train is not None
    assert (found.train.rows, found.train.skipped) == (200, 1)
    path = tmp_path / "train.jsonl"
    assert found.train.notes == (f"1 of 201 rows of {path} cannot be used, the first at line 201: column 'text': it is empty",)


def test_of_large_files_the_first_rows_tell_in_seconds_and_nothing_behind_them_counts(tmp_path: Path, toy: Toy) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows(2000))

    first = check(tmp_path, toy("bert"), train=text + "no row\n" * 100, first_rows=True)
    (tmp_path / "again").mkdir()
    whole = check(tmp_path / "again", toy("bert"), train=text, first_rows=True)

    assert (first.failures, whole.failures) == ((), ())
    assert first.train == FileCheck(rows=2000, labels={"high": 1000, "low": 1000}, is_whole=False)
    assert whole.train == FileCheck(rows=2000, labels={"high": 1000, "low": 1000})


@pytest.mark.parametrize("text", ["x" * 2**20, ["x" * 2**19, {"of": ["x" * 2**19]}]])
def test_of_large_rows_few_are_read_whatever_the_texts_are_in(text: Any) -> None:
    numbered = ((at, {"text": text}) for at in count(1))

    first = FirstRecords(numbered, Bounds(characters=4 * 2**20))

    assert [number for number, _ in first] == [1, 2, 3, 4, 5]
    assert not first.is_whole


def test_both_files_and_the_model_are_checked_whatever_the_first_one_has(tmp_path: Path, toy: Toy) -> None:
    found = check(tmp_path, toy("llama"), CausalLM(format="Alpaca", max_length=1024), train=rows())

    assert reasons(found) == [FailureReason.BAD_DATA, FailureReason.BAD_DATA]
    assert found.train is None


def test_a_label_that_the_run_does_not_declare_is_a_failure_of_both_files(tmp_path: Path, toy: Toy) -> None:
    found = check(tmp_path, toy("bert"), CLASSES.model_copy(update={"labels": ("high", "middle")}))

    assert [failure.message.partition(", have in")[0] for failure in found.failures] == [
        f"4 of 8 rows of {tmp_path}/{part}.jsonl, the first at line 2" for part in ("train", "validation")
    ]


def test_labels_that_are_not_declared_are_named_as_a_profile_would(tmp_path: Path, toy: Toy) -> None:
    found = check(tmp_path, toy("bert"), SequenceClassification(max_length=16), train=[*rows(), {"text": "one", "label": "both"}])

    # Of both files together the value has two rows, so that it is a label.
    assert found.train is not None
    assert found.train.labels == {"both": 1, "high": 4, "low": 4}


def test_samples_that_are_cut_are_counted_by_their_whole_length(tmp_path: Path, toy: Toy) -> None:
    found = check(tmp_path, toy("bert"), train=[*rows(), {"text": "x" * 40, "label": "low"}])

    assert found.tokens is not None
    assert (found.tokens.longest, found.tokens.cut, found.tokens.max_length) == (40, 1, 16)


def test_the_share_of_the_tokens_that_the_assistant_says_is_told(tmp_path: Path, toy: Toy) -> None:
    found = check(tmp_path, with_template(toy("llama"), CHATML, tmp_path), CHAT, train=turns("user", "assistant"))

    assert found.failures == ()
    assert found.tokens is not None
    assert 0 < found.tokens.target_share < 0.5


def test_pairs_of_answers_are_counted_and_those_that_prefer_nothing_are_told(tmp_path: Path, toy: Toy) -> None:
    pairs = [{"prompt": f"ask {at}", "chosen": " better", "rejected": " worse"} for at in range(4)]
    long = {"prompt": "ask", "chosen": " x" * 60, "rejected": " y"}

    found = check(
        tmp_path,
        toy("llama"),
        Preference(prompt_column="prompt", max_length=32),
        train=[*pairs, long, {"prompt": "ask", "chosen": " same", "rejected": " same"}],
    )

    assert found.failures == ()
    assert found.train is not None
    assert (found.train.rows, found.train.skipped) == (5, 1)
    assert "prefer nothing" in found.train.notes[0]
    assert found.tokens is not None
    assert (found.tokens.samples, found.tokens.cut, found.tokens.longest) == (5, 1, 124), "of prompt and one answer"
    assert found.tokens.target_share < 1


def test_a_pair_that_is_left_out_for_its_length_makes_no_other_count_as_cut(tmp_path: Path, toy: Toy) -> None:
    alike = {"prompt": "ask", "chosen": " x" * 60 + "a", "rejected": " x" * 60 + "b"}
    pairs = [{"prompt": f"ask {'x' * at}", "chosen": " better", "rejected": " worse"} for at in (9, 0, 8, 1)]

    found = check(tmp_path, toy("llama"), Preference(prompt_column="prompt", max_length=32), train=[alike, *pairs])

    assert found.failures == ()
    assert found.tokens is not None
    assert (found.tokens.samples, found.tokens.cut) == (4, 1)


def test_a_name_of_modules_to_save_that_no_module_has_is_a_failure(tmp_path: Path, toy: Toy) -> None:
    found = check(tmp_path, Model(source=toy("bert").as_uri(), modules_to_save=("embedings",)))

    assert reasons(found) == [FailureReason.BAD_MODEL]
    assert "planning.modulesToSave" in found.failures[0].message


@pytest.mark.parametrize(
    ("template", "data", "message"),
    [
        (GEMMA, turns("system", "user", "assistant"), "the model's chat template cannot render 6 of 6 conversations"),
        ("{% for m in messages %}{{ loop.index }}{% endfor %}", turns("user", "assistant"), "the tokenizer's chat template"),
        (CHATML, CALLS, "the model's chat template renders no tool calls, and so nothing of turns that say nothing else, in 6 of 6"),
    ],
)
def test_a_chat_template_that_cannot_say_what_counts_is_a_failure(
    tmp_path: Path, toy: Toy, template: str, data: list[dict[str, Any]], message: str
) -> None:
    found = check(tmp_path, with_template(toy("gpt2"), template, tmp_path), CHAT, train=data)

    assert found.failures[0].message.startswith(message)
    assert found.train == FileCheck(rows=6)


def test_what_a_chat_template_leaves_out_is_a_note_of_the_first_file_that_has_it(tmp_path: Path, toy: Toy) -> None:
    objective = CHAT.model_copy(update={"tools": "tools"})
    data = [row | {"tools": [{"name": "f"}]} for row in turns("user", "assistant")]

    found = check(tmp_path, with_template(toy("gpt2"), CHATML, tmp_path), objective, train=data)

    assert found.failures == ()
    assert found.train is not None
    assert found.validation == FileCheck(rows=6)
    [note] = found.train.notes
    assert note.startswith("the model's chat template renders no functions, so the model does not learn which it may call")


def test_lengths_are_compared_with_the_positions_of_the_model(tmp_path: Path, toy: Toy) -> None:
    found = check(tmp_path, toy("bert"), CLASSES.model_copy(update={"max_length": 1024}))

    assert [failure.message.partition(":")[0] for failure in found.failures] == [
        "task.maxLength is 1024, but the bert model has only 256 positions"
    ]


def test_the_owner_s_policy_comes_first_and_no_row_is_read_where_it_denies(
    tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "select_rows", lambda *_: pytest.fail("a row is read"))

    found = check(tmp_path, toy("bert"), policy=DataPolicy(columns=("text",)))

    assert reasons(found) == [FailureReason.POLICY_DENIED]
    assert found.train is None


def test_a_column_that_no_row_has_is_told_as_the_author_s_slip_where_the_policy_allows_it(tmp_path: Path, toy: Toy) -> None:
    slip = CLASSES.model_copy(update={"text": "tekst"})

    found = check(tmp_path, toy("bert"), slip, policy=DataPolicy(columns=("tekst", "label")))

    assert reasons(found) == [FailureReason.BAD_DATA, FailureReason.BAD_DATA]
    told = f"column 'tekst' (task.text) does not exist in {tmp_path}/train.jsonl: correct task.text, or use the right file"
    assert found.failures[0].message == told


def test_a_column_that_the_policy_does_not_allow_is_told_the_same_whether_the_data_have_it_or_not(tmp_path: Path, toy: Toy) -> None:
    asked, owner = CLASSES.model_copy(update={"text": "secret"}), DataPolicy(columns=("text", "label"))
    told = []
    for name, extra in (("without", {}), ("with", {"secret": "a text"})):
        (tmp_path / name).mkdir()
        found = check(tmp_path / name, toy("bert"), asked, train=[row | extra for row in rows()], policy=owner)
        told.append([failure.message for failure in found.failures])

    assert told[0] == told[1]
    assert "'secret' (task.text): correct task.text if it is misspelled" in told[0][0]


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        ("s3://bucket/base", "the model s3://bucket/base is in a bucket, so token lengths"),
    ],
)
def test_a_model_that_is_not_here_is_a_warning_and_the_rows_are_checked(tmp_path: Path, source: str, warning: str) -> None:
    found = check(tmp_path, source)

    assert found.failures == ()
    assert found.warnings[0].startswith(warning)
    assert found.train == FileCheck(rows=8, labels={"high": 4, "low": 4})
    assert found.tokens is None


def test_a_model_of_a_claim_that_is_not_here_is_a_warning(tmp_path: Path) -> None:
    found = check(tmp_path, "file:///nowhere/base", model_in_claim=True)

    assert found.failures == ()
    assert found.warnings[0].startswith("the model's folder in its claim, /nowhere/base, is not on this machine, so token lengths")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda _: None, "does not exist on this machine: correct model.source, or, if the trainer's image has this folder"),
        (Path.mkdir, "has no config.json"),
        (Path.touch, "does not exist at this site"),
    ],
)
def test_a_local_path_that_can_be_no_model_is_a_failure(tmp_path: Path, made: Callable[[Path], object], message: str) -> None:
    made(tmp_path / "base")

    found = check(tmp_path, tmp_path / "base")

    assert reasons(found) == [FailureReason.BAD_MODEL]
    assert f"the model folder {tmp_path}/base {message}" in found.failures[0].message
    assert found.train is not None, "the rows are checked all the same"


def test_a_hub_that_is_not_reached_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    found = check(tmp_path, "hf://org/base@main")

    assert found.failures == ()
    assert found.warnings[0].endswith("; so token lengths and the model itself were not checked")
