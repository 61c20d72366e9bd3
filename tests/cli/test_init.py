"""`fedpipe init` from the command line: what it writes and refuses; what it wrote is valid. The trainer answers in this process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from click.testing import Result
from data_files import FORMATS, as_jsonl, as_table
from typer.testing import CliRunner

from fedpipe_operator.cli import app_for, check_data
from fedpipe_operator.cli import init as module
from fedpipe_operator.errors import UserError
from fedpipe_operator.local import inspector
from fedpipe_trainer.contract import Wire
from fedpipe_trainer.inspection import answer
from fedpipe_trainer.settings import Settings

FIELD: Final = Path(__file__).parents[3] / "shared" / "data" / "field"
LABELLED: Final = [{"text": f"a note number {at}", "label": ("red", "blue")[at % 2]} for at in range(30)]
CHAT: Final = [{"messages": [{"role": "user", "content": f"ask {at}"}, {"role": "assistant", "content": f"say {at}"}]} for at in range(30)]
ALPACA: Final = [{"instruction": f"do number {at}", "input": "", "output": f"done {at}"} for at in range(30)]


def ask_here(question: Wire, kind: type[Wire]) -> Wire:
    return kind.model_validate_json(answer(question.to_json(), Settings(cache=Path("cache"))))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for asking in (module, check_data):
        monkeypatch.setattr(asking, "ask", ask_here)


def write(name: str, content: bytes | str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(app_for([command]), [command, *map(str, arguments)])


def init(*arguments: object) -> Result:
    return run("init", *arguments)


def documents(path: str = "fedpipe.yaml") -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(Path(path).read_text()))


def refusal(*arguments: object, status: int = 2) -> str:
    result = init(*arguments)
    assert result.exit_code == status, result.output
    assert not Path("fedpipe.yaml").exists()
    return result.stderr


@pytest.mark.parametrize(
    ("rows", "model", "task"),
    [
        (
            LABELLED,
            "bert",
            {"type": "SequenceClassification", "text": "text", "label": "label", "labels": ["blue", "red"], "maxLength": 64},
        ),
        (
            LABELLED,
            "llama",
            {"type": "SequenceClassification", "text": "text", "label": "label", "labels": ["blue", "red"], "maxLength": 64},
        ),
        (CHAT, "llama-chat", {"type": "CausalLM", "format": "Messages", "maxLength": 64}),
        (ALPACA, "llama", {"type": "CausalLM", "format": "Alpaca", "maxLength": 64}),
        (ALPACA, "t5", {"type": "Seq2SeqLM", "format": "Alpaca", "maxLength": 64}),
    ],
)
def test_what_is_written_is_valid_and_names_the_task_of_the_data_and_the_model(
    models: Callable[[str], Path], rows: list[dict[str, Any]], model: str, task: dict[str, Any]
) -> None:
    result = init(write("notes.jsonl", as_jsonl(rows)), "--model", models(model))

    assert result.exit_code == 0, result.output
    assert documents()[0]["spec"]["task"] == task
    assert "next: fedpipe validate fedpipe.yaml --data, then fedpipe run fedpipe.yaml" in result.stdout
    assert run("validate", "fedpipe.yaml").output == "EdgeSite notes: valid\nFederatedFineTune notes: valid\n"


def test_what_was_read_by_what_was_written_is_told_in_a_sentence(models: Callable[[str], Path]) -> None:
    north, south = write("north.jsonl", as_jsonl(LABELLED)), write("south.csv", as_table(LABELLED * 100, ","))

    result = init(north, south, "--model", models("bert"))

    told = [line for line in result.stdout.splitlines() if "can be read" in line]
    tokens = "samples of 16 tokens on average, the longest has 16"
    assert told == [
        f"north: 27 rows for training and 3 rows for validation can be read; 27 {tokens}",
        f"south: the first 2000 rows for training and 300 rows for validation can be read; 2000 {tokens}",
    ]
    assert result.stdout.splitlines()[-1].startswith("next: fedpipe validate fedpipe.yaml --data")


def test_data_that_a_run_could_not_use_are_told_with_what_to_do_and_what_was_written_stays(models: Callable[[str], Path]) -> None:
    data = write("notes.jsonl", as_jsonl([{"text": 5, "label": "red"}, *LABELLED]))

    result = init(data, "--model", models("bert"), "--validation", data)

    assert result.exit_code == 2, result.output
    assert "notes: a run could not use these data: BadData: 1 of 31 rows of " in result.stdout
    assert "column 'text': it is a number, not text. At most 1 % of the rows may be bad: correct or remove them" in result.stdout
    assert result.stdout.splitlines()[-1] == (
        "next: correct this; after a change of the data, give the same command with --force. "
        "Then fedpipe validate fedpipe.yaml --data, then fedpipe run fedpipe.yaml"
    )
    assert run("validate", "fedpipe.yaml").exit_code == 0


def test_a_few_rows_without_a_text_do_not_fill_the_rows_that_are_set_aside(models: Callable[[str], Path]) -> None:
    rows = [{"text": f"a note number {at}", "label": ("red", "blue")[at % 2]} for at in range(1000)]

    result = init(write("notes.csv", as_table([*rows, *[{"text": "", "label": "red"}] * 5], ",")), "--model", models("bert"))

    assert result.exit_code == 0, result.output
    assert "notes: 900 rows for training and 100 rows for validation can be read; 5 of 905 rows of " in result.stdout


def test_a_policy_of_the_data_s_owner_that_forbids_the_task_is_told(models: Callable[[str], Path]) -> None:
    data = write("ward/train.jsonl", as_jsonl(LABELLED))
    write("ward/fedpipe-policy.yaml", "columns: [text]")

    result = init(data, "--model", models("bert"), "--validation", data)

    assert result.exit_code == 2
    assert "ward: a run could not use these data: PolicyDenied: " in result.stdout
    assert "policy.columns does not allow the column 'label' (task.label)" in result.stdout
    assert Path("fedpipe.yaml").exists()


@pytest.mark.parametrize("reason", ["TrainerMissing", "TrainerFailed"])
def test_where_no_trainer_reads_the_data_that_is_said_with_the_command_that_does(
    models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def fail(*_: object) -> None:
        raise UserError(reason, "it is so")

    monkeypatch.setattr(check_data, "ask", fail)
    result = init(write("notes.jsonl", as_jsonl(LABELLED)), "--model", models("bert"))

    assert result.exit_code == 0
    assert f"warning: the data were not read as a run reads them: {reason}: it is so" in result.stderr
    assert result.stdout.splitlines()[-1] == "next: fedpipe validate fedpipe.yaml --data, then fedpipe run fedpipe.yaml"


def test_the_commands_that_come_next_can_be_copied_into_a_shell(models: Callable[[str], Path]) -> None:
    result = init(write("notes.jsonl", as_jsonl(LABELLED)), "--model", models("bert"), "--output", "my runs #1/a.yaml")

    assert "next: fedpipe validate 'my runs #1/a.yaml' --data, then fedpipe run 'my runs #1/a.yaml'" in result.stdout


def test_the_data_and_the_model_are_where_a_run_looks_for_them(models: Callable[[str], Path]) -> None:
    write("data/train.csv", as_table(LABELLED, ";"))
    write("data/validation.csv", as_table(LABELLED[:6], ";"))

    init("data/train.csv", "--model", models("bert"), "--site", "ward")
    run_, site = documents()

    assert site["spec"]["data"] == {
        "train": "train.csv",
        "validation": "validation.csv",
        "volume": {"persistentVolumeClaim": {"claimName": "ward-data"}},
    }
    assert Path("volumes/ward-data/train.csv").resolve() == Path("data/train.csv").resolve()
    assert Path("volumes/ward-data/validation.csv").resolve() == Path("data/validation.csv").resolve()
    assert run_["spec"]["model"] == {"source": "pvc://models/bert"}
    assert Path("volumes/models/bert").resolve() == models("bert").resolve()


def test_without_validation_data_a_tenth_of_the_rows_is_set_aside(models: Callable[[str], Path]) -> None:
    result = init(write("notes.csv", as_table(LABELLED, ",")), "--model", models("bert"))

    lines = {part: Path(f"volumes/notes-data/split/{part}.jsonl").read_text().splitlines() for part in ("train", "validation")}
    assert {part: len(found) for part, found in lines.items()} == {"train": 27, "validation": 3}
    assert json.loads(lines["train"][0]) == LABELLED[0]
    assert "split/train.jsonl: 27 rows; 3 others for validation beside it" in result.stderr
    assert documents()[1]["spec"]["data"]["train"] == "split/train.jsonl"


def test_several_files_are_several_sites(models: Callable[[str], Path]) -> None:
    north, south = write("Nord-Klinik.jsonl", as_jsonl(LABELLED)), write("2 South.csv", as_table(LABELLED, ","))

    init(north, south, "--model", models("bert"), "--name", "wards")

    assert [one["metadata"]["name"] for one in documents()] == ["wards", "nord-klinik", "south"]
    assert run("validate", "fedpipe.yaml").exit_code == 0


def test_sites_of_the_same_name_are_numbered(models: Callable[[str], Path]) -> None:
    for folder in ("a", "b"):
        write(f"{folder}/notes.jsonl", as_jsonl(LABELLED))

    init("a/notes.jsonl", "b/notes.jsonl", "--model", models("bert"))

    assert [one["metadata"]["name"] for one in documents()] == ["notes", "notes", "notes-2"]


def test_given_validation_data_are_taken_and_a_test_file_without_labels_is_not(models: Callable[[str], Path]) -> None:
    train, test = write("train.csv", as_table(LABELLED, ",")), write("test.csv", as_table([{"text": "no label"}], ","))

    init(train, "--model", models("bert"), "--validation", write("other.csv", as_table(LABELLED[:4], ",")), "-o", "given.yaml")
    init(train, "--model", models("bert"), "-o", "found/fedpipe.yaml")

    assert documents("given.yaml")[1]["spec"]["data"]["validation"] == "validation.csv"
    assert documents("found/fedpipe.yaml")[1]["spec"]["data"]["validation"] == "split/validation.jsonl"
    assert test.exists()


@pytest.mark.parametrize("form", ["folder of shards", "saved dataset", "jsonl.zst", "tsv.gz", "parquet"])
def test_every_format_gets_a_path_that_the_api_takes(models: Callable[[str], Path], form: str) -> None:
    data, validation = (FORMATS[form](Path(part), LABELLED) for part in ("one", "two"))

    init(data, "--model", models("bert"), "--validation", validation)

    assert run("validate", "fedpipe.yaml").exit_code == 0
    assert Path("volumes", f"{documents()[1]['metadata']['name']}-data", documents()[1]["spec"]["data"]["train"]).exists()


def test_shards_of_two_parts_in_one_folder_are_named_by_patterns(models: Callable[[str], Path]) -> None:
    shard = FORMATS["parquet"](Path("made"), LABELLED).read_bytes()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        write(f"hub/{name}.parquet", shard)

    init("hub", "--model", models("bert"))

    assert documents()[1]["spec"]["data"]["train"] == "train/train*.parquet"
    assert len(list(Path("volumes/hub-data").glob("train/train*.parquet"))) == 2
    assert run("validate", "fedpipe.yaml").exit_code == 0


def test_with_a_dash_the_yaml_is_printed_and_nothing_is_written(models: Callable[[str], Path]) -> None:
    result = init(write("notes.jsonl", as_jsonl(LABELLED)), "--model", models("bert"), "-o", "-")

    assert [one["kind"] for one in yaml.safe_load_all(result.stdout)] == ["FederatedFineTune", "EdgeSite"]
    assert [path.name for path in Path().iterdir()] == ["notes.jsonl"]
    assert "nothing was written" in result.stderr


def test_nothing_is_overwritten_without_force_and_with_it_only_what_init_wrote(models: Callable[[str], Path]) -> None:
    data = write("notes.jsonl", as_jsonl(LABELLED))
    init(data, "--model", models("bert"))

    again = init(data, "--model", models("bert"))
    assert again.exit_code == 2
    assert "fedpipe.yaml is there already: name another file with --output, or overwrite it with --force" in again.stderr
    assert init(data, "--model", models("bert"), "--force").exit_code == 0

    Path("volumes/models/bert").unlink()
    shutil.copytree(models("bert"), "volumes/models/bert")
    kept = init(data, "--model", models("bert"), "--force")
    assert kept.exit_code == 2
    assert "volumes/models/bert is there already: it is no link, so it is kept" in kept.stderr


def test_a_second_file_beside_the_first_shares_its_links_and_takes_none_that_lead_elsewhere(models: Callable[[str], Path]) -> None:
    data = write("notes.jsonl", as_jsonl(LABELLED))
    init(data, "--model", models("bert"))

    assert init(data, "--model", models("bert"), "-o", "other.yaml", "--site", "other").exit_code == 0
    shutil.copytree(models("bert"), "elsewhere/bert")

    message = init(data, "--model", "elsewhere/bert", "-o", "two.yaml", "--site", "two").stderr

    assert "volumes/models/bert is there already: overwrite it with --force" in message


@pytest.mark.parametrize("name", ["notes.jsonl", "fedpipe"])
def test_the_output_is_yaml_so_that_force_overwrites_no_data(models: Callable[[str], Path], name: str) -> None:
    data = write("notes.jsonl", as_jsonl(LABELLED))

    assert "does not end in .yaml or .yml" in refusal(data, "--model", models("bert"), "-o", name, "--force")
    assert data.read_bytes() == as_jsonl(LABELLED)


def test_where_rows_cannot_be_set_aside_nothing_is_left_that_a_second_try_stumbles_over(models: Callable[[str], Path]) -> None:
    data = write("notes.jsonl", as_jsonl([{"instruction": "do it", "output": "it is done"}] * 5))

    assert "of which no two differ: a part for validation needs another row" in refusal(data, "--model", models("llama"))
    write("notes.jsonl", as_jsonl(ALPACA))
    assert init(data, "--model", models("llama")).exit_code == 0


def test_a_command_that_fails_at_its_second_file_leaves_nothing_so_that_the_corrected_one_succeeds(
    models: Callable[[str], Path],
) -> None:
    good, empty = write("reviews-a.jsonl", as_jsonl(LABELLED)), write("empty.jsonl", "")

    assert "the data file empty.jsonl has no rows" in refusal(good, empty, "--model", models("bert"))
    assert not Path("volumes").exists()
    assert init(good, "--model", models("bert")).exit_code == 0


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt(), UserError("TrainerFailed", "it is gone")])
def test_whatever_ends_a_command_before_it_has_written_the_yaml_nothing_is_left(
    models: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "_make_link", fail)
    data = write("notes.jsonl", as_jsonl(LABELLED))

    assert init(data, "--model", models("bert"), "-o", "made/fedpipe.yaml").exit_code != 0
    assert [path.name for path in Path().iterdir()] == ["notes.jsonl"]


def test_a_failure_removes_nothing_that_was_there_before(models: Callable[[str], Path]) -> None:
    good, other = write("notes.jsonl", as_jsonl(LABELLED)), write("other.jsonl", as_jsonl(LABELLED))
    init(good, "--model", models("bert"))
    write("volumes/other-data/mine.txt", "mine")
    before = {path for path in Path().rglob("*") if not path.is_dir()}
    other.write_text("")

    assert init(good, other, "--model", models("bert"), "--force").exit_code == 2
    assert {path for path in Path().rglob("*") if not path.is_dir()} == before
    assert not Path("volumes/other-data/split").exists()


def test_the_rows_of_an_owner_with_a_policy_file_are_not_copied_from_under_it(models: Callable[[str], Path]) -> None:
    data = write("ward/notes.jsonl", as_jsonl(LABELLED))
    write("ward/fedpipe-policy.yaml", "maxLabels: 3")

    message = refusal(data, "--model", models("bert"))

    assert "would not for a copy of its rows: make a validation file beside it, and name it by --validation" in message
    assert not list(Path("volumes").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("rows", "model", "message"),
    [
        (CHAT, "bert", "the bert model is an encoder, which writes no text: give a decoder that was trained for chat"),
        (CHAT, "llama", "has no chat template: give a model that was trained for chat, or add chat_template.jinja to its folder"),
        ([{"a": 1, "b": 2}], "bert", "no task is known for these columns: 'a' (number), 'b' (number)"),
    ],
)
def test_what_does_not_fit_is_refused(models: Callable[[str], Path], rows: list[dict[str, Any]], model: str, message: str) -> None:
    assert message in refusal(write("notes.jsonl", as_jsonl(rows)), "--model", models(model))


def test_a_model_that_cannot_be_used_is_refused_when_it_is_looked_at(models: Callable[[str], Path]) -> None:
    data, copy = write("notes.jsonl", as_jsonl(LABELLED)), Path("copy")
    shutil.copytree(models("bert"), copy)
    config = json.loads((copy / "config.json").read_text())

    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    assert "is already quantised (config.json has quantization_config, gptq)" in refusal(data, "--model", copy)
    (copy / "config.json").unlink()
    assert "has no config.json" in refusal(data, "--model", copy)
    assert "there is no model 'nowhere': give the folder of a model, or its name on a hub" in refusal(data, "--model", "nowhere")


def test_of_a_hub_that_is_not_reached_the_task_is_guessed_from_the_data_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    result = init(write("notes.jsonl", as_jsonl(ALPACA)), "--model", "org/base")

    assert result.exit_code == 0, result.output
    assert "warning: the model was not looked at, so the task is guessed from the data alone: " in result.stderr
    assert documents()[0]["spec"]["model"] == {"source": "hf://org/base@main"}
    assert documents()[0]["spec"]["task"]["type"] == "CausalLM"
    assert run("validate", "fedpipe.yaml").exit_code == 0


def test_a_model_in_a_bucket_or_a_claim_is_written_as_it_is_named() -> None:
    for at, source in enumerate(("s3://models/base", "pvc://weights/base")):
        init(write("notes.jsonl", as_jsonl(LABELLED)), "--model", source, "-o", f"{at}/fedpipe.yaml")
        assert documents(f"{at}/fedpipe.yaml")[0]["spec"]["model"] == {"source": source}


def test_options_that_do_not_fit_are_refused(models: Callable[[str], Path]) -> None:
    data, model = write("notes.jsonl", as_jsonl(LABELLED)), models("bert")

    assert "--site is given 1 times for 2 DATA: give it once for each" in refusal(data, data, "--model", model, "--site", "a")
    assert "--name 'No Name' is no name of an object: write lower-case letters" in refusal(data, "--model", model, "--name", "No Name")
    assert "there is no column 'lable'" in refusal(data, "--model", model, "--label", "lable")
    assert "is a folder: name a file in it with --output" in refusal(data, "--model", model, "-o", model)


def test_all_that_is_wrong_is_told_at_once(models: Callable[[str], Path]) -> None:
    message = refusal("none.jsonl", "none.csv", "--model", models("bert"))

    assert len(message.splitlines()) == 3
    assert message.count("No such file or directory") == 2


@pytest.mark.parametrize(
    "name",
    ["policy: {}\n---\nkind: X.csv", "größe 文本 🙂.csv", "a # b.csv", "'\".csv", "%41.csv", "-x.csv", "ends with space .csv", "..csv"],
)
def test_no_name_of_a_file_breaks_the_yaml(models: Callable[[str], Path], name: str) -> None:
    write(f"in/{name}", as_table(LABELLED, ","))

    result = init(Path("in", name), "--model", models("bert"), "--validation", Path("in", name))

    assert result.exit_code == 0, result.output
    assert run("validate", "fedpipe.yaml").exit_code == 0
    assert [set(one["spec"]) for one in documents()] == [{"model", "task", "sites", "rounds"}, {"data", "modelClaims", "policy"}]


@pytest.mark.parametrize(
    "column", ["text\npolicy: {}", "a.b", "a'b\"c", "größe", "{text}", "x: y", "# x", "\u2028x", "1", "null", "y" * 253, "%x", "[0]"]
)
def test_no_name_of_a_column_breaks_the_yaml(models: Callable[[str], Path], column: str) -> None:
    rows = [{column: row["text"], f"{column[:240]}label": row["label"]} for row in LABELLED]

    result = init(write("notes.jsonl", as_jsonl(rows)), "--model", models("bert"), "--label", f"{column[:240]}label")

    assert result.exit_code == 0, result.output
    assert documents()[0]["spec"]["task"]["text"] == column
    assert documents()[1]["spec"]["policy"] == {"columns": [column, f"{column[:240]}label"], "minSites": 1}
    assert run("validate", "fedpipe.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("file", "outcome"),
    [
        ("integer-labels.jsonl", ["0", "1"]),
        ("labels-with-spaces.csv", ["Red", "red"]),
        ("leading-blank-line.csv", ["blue", "red"]),
        ("unrelated-odd-timezone.parquet", ["blue", "red"]),
        ("repeated-header.csv", "has column 'text' 2 times: rename all but one of them"),
        ("stray-quote.csv", "is not closed"),
        ("windows-1252-header.csv", "is not UTF-8: save it as UTF-8"),
    ],
)
@pytest.mark.skipif(not FIELD.exists(), reason="the reports' files are not beside this clone")
def test_files_that_people_reported_are_taken_as_meant_or_refused_in_words(
    models: Callable[[str], Path], file: str, outcome: list[str] | str
) -> None:
    if isinstance(outcome, str):
        assert outcome in refusal(FIELD / file, "--model", models("bert"))
        return
    assert init(FIELD / file, "--model", models("bert")).exit_code == 0
    assert documents()[0]["spec"]["task"]["labels"] == outcome
    assert run("validate", "fedpipe.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "have no rows with columns: give a file that has some"),
        (b'{"text": "the only one", "label": "a"}\n', "'label' has 1 different values in 1 rows, which are no labels ("),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 500, "is not UTF-8, but UTF-16 or no text: save it as UTF-8"),
        (b"[1, 2]\n[3]\n", "2 of 2 rows of notes.jsonl cannot be used, the first at line 1: "),
        (b"{}\n{}\n", "have no rows with columns"),
        ('{"text": "für", "label": "a"}\n'.encode("latin-1") * 9, "9 of 9 rows of notes.jsonl cannot be used, the first at line 1: "),
    ],
)
def test_odd_files_are_refused_in_words(models: Callable[[str], Path], content: bytes, message: str) -> None:
    assert message in refusal(write("notes.jsonl", content), "--model", models("bert"))


def test_a_table_in_another_encoding_is_told_as_such(models: Callable[[str], Path]) -> None:
    data = write("notes.csv", as_table([{"text": f"für {at}", "label": "ab"[at % 2]} for at in range(9)], ",").decode().encode("latin-1"))

    assert "most texts in 'text' are not UTF-8: save the file as UTF-8" in refusal(data, "--model", models("bert"))


def test_a_machine_without_the_trainer_s_packages_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, models: Callable[[str], Path]
) -> None:
    monkeypatch.setattr(module, "ask", inspector.ask)
    monkeypatch.setattr(inspector, "find_spec", lambda name: None if name == "torch" else name)

    message = refusal(write("notes.jsonl", as_jsonl(LABELLED)), "--model", models("bert"), status=1)

    assert message.splitlines()[-1] == (
        "TrainerMissing: the trainer's packages are not installed here (torch is missing), and they read data and models: "
        "pip install 'fedpipe[operator,trainer]', or `make venv` in a clone of the repository"
    )


def test_one_trainer_answers_all_questions_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its imports take seconds. The stand-in numbers its answers."""
    count = 'n=0; while read -r question; do n=$((n+1)); printf \'{"data": [{"train": "%s"}]}\\n\' "$n"; done; echo gone >&2'
    monkeypatch.setattr(inspector, "_COMMAND", ("sh", "-c", count))

    answers = [inspector.ask(module.InspectQuestion(data=("a\nb \u2028 c",)), module.Inspection) for _ in range(3)]

    assert [found.train for one in answers for found in one.data] == ["1", "2", "3"]
    assert inspector._trainer().end() == (0, ["gone"])
    inspector._trainer.cache_clear()


def test_a_trainer_that_ends_without_an_answer_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspector, "_COMMAND", ("sh", "-c", "echo out of luck >&2; exit 3"))

    with pytest.raises(UserError, match=r"TrainerFailed: .* ended with status 3 and no answer: out of luck"):
        inspector.ask(module.InspectQuestion(data=("x",)), module.Inspection)
