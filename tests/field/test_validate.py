"""What `fedpipe validate` must see, since every site would fail on it, or train on something else."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpipe_operator.cli import app_for

RUN = """\
apiVersion: fedpipe.io/v1alpha1
kind: FederatedFineTune
metadata: {{name: notes}}
spec:
  model: {{source: "pvc://models/base"}}
  task: {{{task}}}
  store: {{bucket: fedpipe}}
"""
SITE = """\
apiVersion: fedpipe.io/v1alpha1
kind: EdgeSite
metadata: {{name: north}}
spec:
  data: {{train: "{train}", validation: validation.csv, volume: {{persistentVolumeClaim: {{claimName: notes}}}}}}
"""


def validate(path: Path) -> tuple[int, str]:
    result = CliRunner().invoke(app_for(["validate"]), ["validate", str(path)])
    return result.exit_code, result.output


def validate_task(folder: Path, task: str) -> tuple[int, str]:
    (folder / "run.yaml").write_text(RUN.format(task=task))
    return validate(folder)


def classification(labels: str) -> str:
    return f"type: SequenceClassification, labels: {labels}"


@pytest.mark.parametrize("field", ["{text:.500}", "{text!r}", "{text!s:>10}", "{text:{width}}", "{text[0]}", "{text..a}", "{}", "{.a}"])
def test_a_template_has_columns_and_no_forms_of_them(tmp_path: Path, field: str) -> None:
    status, output = validate_task(tmp_path, f'type: CausalLM, prompt: "{field}", response: "{{label}}"')

    assert status == 2
    assert "run.yaml:6: document 1, FederatedFineTune notes: spec.task.prompt: {" in output


@pytest.mark.parametrize("field", ["{text}", "{review.body}", "{my column}", "{{literal}} {text}"])
def test_a_template_may_have_columns_and_paths(tmp_path: Path, field: str) -> None:
    assert validate_task(tmp_path, f'type: CausalLM, prompt: "{field}", response: "{{label}}"')[0] == 0


@pytest.mark.parametrize(
    "labels", ["[spam, ham, spam]", '[spam, ham, " spam"]', '[spam, ham, ""]', '["spam\\u202e", ham]', '["a\\tb", c]', '[" ", c]']
)
def test_labels_that_no_row_could_have_or_that_are_there_twice_are_problems(tmp_path: Path, labels: str) -> None:
    status, output = validate_task(tmp_path, classification(labels))

    assert status == 2
    assert "spec.task.labels" in output


@pytest.mark.parametrize("labels", ['["👩\u200d👧", "क्\u200dष"]', "[naïve, הודעה]"])
def test_labels_of_any_script_are_no_problem(tmp_path: Path, labels: str) -> None:
    assert validate_task(tmp_path, classification(labels))[0] == 0


@pytest.mark.parametrize("text", ['"\\e[31mred"', '"\\ud800"', '"\\u202e"', '"a\\nb"', '"' + "x" * 100_000 + '"'])
def test_every_message_is_printable_and_bounded(tmp_path: Path, text: str) -> None:
    for path, content in (("run.yaml", RUN.format(task=f"type: {text}")), ("site.yaml", SITE.format(train="x").replace("north", text))):
        (tmp_path / path).write_text(content)
    status, output = validate(tmp_path)

    assert status == 2
    assert all(line.isprintable() and len(line) <= 4096 for line in output.splitlines())


@pytest.mark.parametrize("name", ["run.yml", "run.yaml", "RUN.YML"])
def test_every_yaml_file_of_a_folder_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(RUN.format(task=classification("[a]")))

    assert validate(tmp_path)[0] == 2


NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "b/a.json", "a.csv", "a.tsv.gz", "a.parquet", "train", "b/train", "b.c/train/", "v1.0/"]


@pytest.mark.parametrize("train", [*NAMES, "data/train-*.parquet"])
def test_every_format_may_be_named(tmp_path: Path, train: str) -> None:
    (tmp_path / "site.yaml").write_text(SITE.format(train=train))

    assert validate(tmp_path)[0] == 0


@pytest.mark.parametrize("train", ["a.txt", "a.xlsx", "/a.csv", "../a.csv", ".hidden/a.csv", "a.parquet.gz", "a.gz", "a//b.csv", ""])
def test_what_no_trainer_reads_is_a_problem(tmp_path: Path, train: str) -> None:
    (tmp_path / "site.yaml").write_text(SITE.format(train=train))

    assert validate(tmp_path)[0] == 2
