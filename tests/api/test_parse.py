"""`read_documents`: both kinds from YAML, and for every problem a sentence with its place."""

from pathlib import Path

import pytest

from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.api.parse import Reading, read_documents

SITE = """\
apiVersion: fedpipe.io/v1alpha1
kind: EdgeSite
metadata: {name: north}
spec:
  data: {train: train.jsonl, validation: validation.csv, volume: {persistentVolumeClaim: {claimName: notes}}}
"""

RUN = """\
apiVersion: fedpipe.io/v1alpha1
kind: FederatedFineTune
metadata: {name: notes}
spec:
  model: {source: "pvc://models/base"}
  task: {type: SequenceClassification}
  store: {bucket: fedpipe}
"""

GENERATING = RUN.replace("{type: SequenceClassification}", '{type: CausalLM, prompt: "{mr}", response: "{ref}"}')


def read(text: str) -> Reading:
    return read_documents(text, "file.yaml")


def problems(text: str) -> list[str]:
    return [str(problem) for problem in read(text).problems]


def test_a_file_holds_objects_of_both_kinds_and_empty_documents() -> None:
    reading = read(f"---\n{SITE}---\n---\n{RUN}")

    assert reading.problems == ()
    assert [type(found.value) for found in reading.found] == [EdgeSite, FederatedFineTune]


def test_numbers_and_texts_are_read_as_the_api_server_reads_them() -> None:
    reading = read(RUN + "  training: {learningRate: 2e-4, epochs: 1}\n" + "  planning:\n")

    (found,) = reading.found
    assert isinstance(found.value, FederatedFineTune)
    assert found.value.spec.training.learning_rate == 2e-4
    assert found.value.spec.planning.bits == (4, 8, 16)


@pytest.mark.parametrize("value", ["1:30", "2026-01-01", "007x"])
def test_text_that_yaml_1_1_would_convert_stays_text(value: str) -> None:
    (found,) = read(SITE.replace("claimName: notes", "claimName: notes") + f"  nodeSelector: {{zone: {value}}}\n").found

    assert isinstance(found.value, EdgeSite)
    assert found.value.spec.node_selector == {"zone": value}


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("  planning: {bits: [4, 5]}", ("spec.planning.bits[1]", "5 is not known here: write one of 4, 8, 16, 32")),
        ("  planning: {mode: auto}", ("spec.planning.mode", "'auto' is not known here (did you mean Auto?): write one of Auto, Uniform")),
        ("  planning: {mod: Auto}", ("spec.planning.mod", "there is no such field: did you mean mode?")),
        ("  epochs: 2", ("spec.epochs", "there is no such field here: did you mean spec.training.epochs?")),
        ("  export: {onnx: true}", ("spec.export.onnx", "there is no such field: the fields here are adapter, merged")),
        ("  sites: {per_round: 3}", ("spec.sites.per_round", "there is no such field: did you mean perRound?")),
        ("  sites: {quorum: 1.5}", ("spec.sites.quorum", "is 1.5, but must be at most 1: change the number")),
        ("  sites: {quorum: .nan}", ("spec.sites.quorum", "is nan, but must be at most 1: change the number")),
        ("  sites: [a]", ("spec.sites", "must be a mapping, not a list: write its fields as `name: value`, indented below it")),
        (
            "  rounds: {count: '3'}",
            ("spec.rounds.count", "must be a whole number, not a text (3): write it without quotes and without a fraction"),
        ),
        (
            "  rounds: {deadline: 0s}",
            ("spec.rounds.deadline", "'0s' is not of the form it must have: write a duration above 0, such as 90s, 30m or 1h30m"),
        ),
        ("  rounds: {target: {value: 1}}", ("spec.rounds.target.metric", "is missing: add metric")),
        ("  suspend: 'yes'", ("spec.suspend", "must be true or false, not a text (yes): write true or false without quotes")),
        ("  planning: {ranks: []}", ("spec.planning.ranks", "has 0 entries, but must have at least 1: make it fit")),
        ("  planning: {ranks: [0]}", ("spec.planning", "ranks are all 0, so nothing would be trained: add a rank above 0")),
        (
            "  aggregation: {method: FedIT}",
            ("spec", "aggregation.method FedIT averages equal ranks only: set planning.mode to Uniform, or the method to Exact"),
        ),
        (
            "  rounds: {target: {metric: bleu, value: 1}}",
            ("spec", "rounds.target.metric bleu is not measured for SequenceClassification: use one of accuracy, macroF1, loss"),
        ),
    ],
)
def test_a_wrong_field_is_reported_with_its_path_and_what_to_write(addition: str, expected: tuple[str, str]) -> None:
    (problem,) = read(RUN + addition).problems

    assert (problem.path, problem.message) == expected


def test_a_problem_is_reported_with_file_line_document_and_object() -> None:
    (line,) = problems(f"{SITE}---\n{RUN}  suspend: 1\n")

    assert line.startswith(
        "file.yaml:14: document 2, FederatedFineTune notes: spec.suspend: must be true or false, not a number (1): write"
    )


def test_all_problems_of_a_file_are_reported_at_once() -> None:
    paths = [
        problem.path for problem in read(f"{SITE}  capacity: {{cpu: 1.5, memory: 0}}\n---\n{RUN}  suspend: 1\n  colour: red\n").problems
    ]

    assert paths == ["spec.capacity.cpu", "spec.capacity.memory", "spec.suspend", "spec.colour"]


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        (("CausalLM", "CausalML"), "spec.task.type", "'CausalML' is not known here (did you mean CausalLM?)"),
        (("type: CausalLM, ", ""), "spec.task.type", "is missing: write one of CausalLM, Seq2SeqLM, SequenceClassification"),
        (("prompt: ", "promt: "), "spec.task.prompt", "is missing: add prompt"),
        (('"{mr}"', '"mr"'), "spec.task.prompt", "the template names no column"),
        (('"{mr}"', '"{mr"'), "spec.task.prompt", "the template cannot be read"),
        (('"{ref}"', '"{ref.a}"'), "spec.task.response", "{ref.a} is no column"),
        (('"{ref}"', '"{ref}", slotPattern: "a("'), "spec.task.slotPattern", "this is no regular expression"),
        (('"{ref}"', '"{ref}", slotPattern: "a"'), "spec.task.slotPattern", "the pattern has no group"),
        (('"{ref}"', '"{ref}", text: a'), "spec.task.text", "there is no such field"),
    ],
)
def test_a_wrong_task_is_reported_without_the_names_of_python_classes(change: tuple[str, str], path: str, message: str) -> None:
    problem = read(GENERATING.replace(*change)).problems[0]

    assert problem.path == path
    assert message in problem.message


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (("train.jsonl", "../train.jsonl"), "spec.data.train"),
        (("train.jsonl", "/train.jsonl"), "spec.data.train"),
        (("train.jsonl", "a/../../train.jsonl"), "spec.data.train"),
        (("claimName: notes", "claimName: ../notes"), "spec.data.volume.persistentVolumeClaim.claimName"),
        (("name: north", "name: 1north"), "metadata.name"),
        (("name: north", "name: " + "n" * 64), "metadata.name"),
        (("{name: north}", "{name: north, labls: {}}"), "metadata.labls"),
    ],
)
def test_a_path_outside_the_volume_and_an_invalid_name_are_rejected(change: tuple[str, str], path: str) -> None:
    (problem,) = read(SITE.replace(*change)).problems

    assert problem.path == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [\n", "file.yaml:2: document 1: this is no YAML"),
        ("a: 1\na: 2\n", "file.yaml:2: document 1: the field 'a' is written twice"),
        ("- 1\n", "file.yaml:1: document 1: this is no object"),
        ("kind: Pod\n", "file.yaml:1: document 1, Pod: kind: 'Pod' is no kind of FedPipe"),
        (
            "x: 1\nkind: EdgeSite\napiVersion: v1\n",
            "file.yaml:3: document 1, EdgeSite: apiVersion: 'v1' is not known: write fedpipe.io/v1alpha1",
        ),
        ("kind: !!python/object:os.system {}\n", "file.yaml:1: document 1: this is no YAML"),
    ],
)
def test_a_document_that_is_not_of_our_kinds_is_reported(text: str, expected: str) -> None:
    assert problems(text)[0].startswith(expected)


def test_documents_before_broken_yaml_are_still_read() -> None:
    reading = read(f"{SITE}---\na: [\n")

    assert [found.value.metadata.name for found in reading.found] == ["north"]
    assert [(problem.document, problem.line) for problem in reading.problems] == [(2, 8)]


def test_a_template_and_an_example_read_without_a_problem() -> None:
    text = Path(__file__).with_name("every_field.yaml").read_text()

    assert problems(text) == []
