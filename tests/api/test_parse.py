"""`read_documents`: the two kinds from YAML, and for every problem a message with its location."""

from pathlib import Path

import pytest

from fedpipe_operator.api import EdgeSite, FederatedFineTune, PreferenceTask, longest_sample, primary_metric
from fedpipe_operator.api.parse import ParseResult, read_documents

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


def read(text: str) -> ParseResult:
    return read_documents(text, "file.yaml")


def messages(text: str) -> list[str]:
    return [str(problem) for problem in read(text).problems]


def test_a_file_holds_objects_of_both_kinds_and_empty_documents() -> None:
    result = read(f"---\n{SITE}---\n---\n{RUN}")

    assert result.problems == ()
    assert [type(item.value) for item in result.objects] == [EdgeSite, FederatedFineTune]


def test_numbers_and_strings_are_read_as_the_api_server_reads_them() -> None:
    result = read(RUN + "  training: {learningRate: 2e-4, epochs: 1}\n" + "  planning:\n")

    (item,) = result.objects
    assert isinstance(item.value, FederatedFineTune)
    assert item.value.spec.training.learning_rate == 2e-4
    assert item.value.spec.planning.bits == (4, 8, 16)


@pytest.mark.parametrize("value", ["1:30", "2026-01-01", "007x"])
def test_strings_that_yaml_1_1_takes_for_other_types_stay_strings(value: str) -> None:
    (item,) = read(SITE.replace("claimName: notes", "claimName: notes") + f"  nodeSelector: {{zone: {value}}}\n").objects

    assert isinstance(item.value, EdgeSite)
    assert item.value.spec.node_selector == {"zone": value}


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("  planning: {bits: [4, 5]}", ("spec.planning.bits[1]", "invalid value 5: write one of 4, 8, 16, 32")),
        (
            "  planning: {mode: auto}",
            (
                "spec.planning.mode",
                "invalid value 'auto' (did you mean Auto?): write one of Auto, Uniform, UniformWeakest, Proportional, Manual",
            ),
        ),
        ("  planning: {mod: Auto}", ("spec.planning.mod", "unknown field: did you mean mode?")),
        ("  epochs: 2", ("spec.epochs", "unknown field: did you mean spec.training.epochs?")),
        ("  export: {onnx: true}", ("spec.export.onnx", "unknown field: the fields here are adapter, merged")),
        ("  sites: {per_round: 3}", ("spec.sites.per_round", "unknown field: did you mean perRound?")),
        ("  sites: {quorum: 1.5}", ("spec.sites.quorum", "is 1.5, but must be at most 1: change the number")),
        ("  sites: {quorum: .nan}", ("spec.sites.quorum", "is nan, but must be at most 1: change the number")),
        ("  sites: [a]", ("spec.sites", "must be a mapping, not a list: write its fields as `name: value`, indented below it")),
        (
            "  rounds: {count: '3'}",
            ("spec.rounds.count", "must be an integer, not a string (3): write it without quotes and without a fraction"),
        ),
        (
            "  rounds: {deadline: 0s}",
            ("spec.rounds.deadline", "invalid format '0s': write a duration above 0, such as 90s, 30m or 1h30m"),
        ),
        ("  rounds: {target: {value: 1}}", ("spec.rounds.target.metric", "required field is missing: add metric")),
        ("  suspend: 'yes'", ("spec.suspend", "must be true or false, not a string (yes): write true or false without quotes")),
        ("  planning: {ranks: []}", ("spec.planning.ranks", "has 0 entries, but must have at least 1: add entries")),
        ("  planning: {ranks: [100000]}", ("spec.planning.ranks[0]", "is 100000, but must be at most 1024: change the number")),
        ("  planning: {batchSizes: [0]}", ("spec.planning.batchSizes[0]", "is 0, but must be at least 1: change the number")),
        ("  planning: {bits: [3]}", ("spec.planning.bits[0]", "invalid value 3 (did you mean 32?): write one of 4, 8, 16, 32")),
        (
            "  planning: {batchSizes: [1.5]}",
            (
                "spec.planning.batchSizes[0]",
                "must be an integer, not a number (1.5): write it without quotes and without a fraction",
            ),
        ),
        (
            "  planning: {plans: [{bits: 16, rank: 4, steps: 10}]}",
            (
                "spec.planning",
                "plans has one without a site, which mode Manual alone gives to the others: set mode: Manual, or name a site",
            ),
        ),
        ("  planning: {ranks: [0]}", ("spec.planning", "ranks are all 0, so nothing would be trained: add a rank above 0")),
        (
            "  aggregation: {method: FedIT}",
            (
                "spec",
                (
                    "aggregation.method FedIT averages equal ranks only: set planning.mode to one of Uniform, UniformWeakest, Proportional,"
                    " Manual, or the method to Exact"
                ),
            ),
        ),
        (
            "  aggregation: {method: ZeroPad, rule: Median}",
            (
                "spec.aggregation",
                "rule Median works on the products B·A, which method ZeroPad does not form: set method to Exact, or rule to Mean",
            ),
        ),
        (
            "  aggregation: {rule: Krum, maliciousSites: 2}\n  sites: {perRound: 8, quorum: 0.75}",
            (
                "spec",
                (
                    "aggregation.rule Krum needs 7 updates to withstand 2 maliciousSites, and sites.perRound times sites.quorum is less:"
                    " raise one of them, or lower aggregation.maliciousSites"
                ),
            ),
        ),
        (
            "  rounds: {target: {metric: bleu, value: 1}}",
            ("spec", "rounds.target.metric bleu is not measured for SequenceClassification: use one of accuracy, macroF1, loss"),
        ),
    ],
)
def test_an_invalid_field_is_reported_with_its_path_and_what_to_write(addition: str, expected: tuple[str, str]) -> None:
    (problem,) = read(RUN + addition).problems

    assert (problem.path, problem.message) == expected


def test_a_cache_on_the_volume_of_the_data_is_reported() -> None:
    (problem,) = read(SITE + "  cache: {persistentVolumeClaim: {claimName: notes}}\n").problems

    assert problem.path == "spec"
    assert problem.message.startswith("cache names the claim of data.volume, which trainers only read: name another claim")


def test_a_problem_is_reported_with_file_line_document_and_object() -> None:
    (line,) = messages(f"{SITE}---\n{RUN}  suspend: 1\n")

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
        (("CausalLM", "CausalML"), "spec.task.type", "invalid value 'CausalML' (did you mean CausalLM?)"),
        (
            ("type: CausalLM, ", ""),
            "spec.task.type",
            "required field is missing: write one of CausalLM, Preference, Seq2SeqLM, SequenceClassification",
        ),
        (("prompt: ", "promt: "), "spec.task.promt", "unknown field: did you mean prompt?"),
        (('prompt: "{mr}", ', ""), "spec.task", "the format Template needs prompt and response: add both"),
        (("type: CausalLM", "type: CausalLM, format: Messages"), "spec.task", "prompt and response belong to the format Template"),
        (
            ("type: CausalLM", "type: CausalLM, tools: functions"),
            "spec.task",
            "messages and tools belong to the formats Messages and ShareGPT",
        ),
        (("type: CausalLM", "type: CausalLM, packing: true"), "spec.task", "text and packing belong to the format Text"),
        (
            ("type: CausalLM", "type: Seq2SeqLM, format: Messages"),
            "spec.task",
            "Seq2SeqLM has the formats Template, Alpaca, PromptCompletion and QuestionAnswering",
        ),
        (('"{mr}"', '"mr"'), "spec.task.prompt", "the template contains no column"),
        (('"{mr}"', '"{mr"'), "spec.task.prompt", "invalid template"),
        (('"{ref}"', '"{ref..a}"'), "spec.task.response", "{ref..a} is not a column"),
        (('"{ref}"', '"{ref[0]}"'), "spec.task.response", "{ref[0]} is not a column"),
        (('"{ref}"', '"{ref}", slotPattern: "a("'), "spec.task.slotPattern", "invalid regular expression"),
        (
            ('"{ref}"', '"{ref}", slotPattern: "(a{4294967296})"'),
            "spec.task.slotPattern",
            "invalid regular expression (the repetition number",
        ),
        (('"{ref}"', f'"{{ref}}", slotPattern: "{"(" * 500}a{")" * 500}"'), "spec.task.slotPattern", "invalid regular expression"),
        (('"{ref}"', '"{ref}", slotPattern: "a"'), "spec.task.slotPattern", "the regular expression has no group"),
        (('"{ref}"', '"{ref}", label: a'), "spec.task.label", "unknown field"),
    ],
)
def test_an_invalid_task_is_reported_without_the_names_of_python_classes(change: tuple[str, str], path: str, message: str) -> None:
    problem = read(GENERATING.replace(*change)).problems[0]

    assert problem.path == path
    assert message in problem.message


TWICE = "promptColumn, chosenColumn and rejectedColumn are different columns: correct the one that is named twice"
PREFERRING = RUN.replace("{type: SequenceClassification}", "{type: Preference}")


@pytest.mark.parametrize(
    ("task", "path", "message"),
    [
        (
            "chosenColumn: rejected",
            "spec.task",
            TWICE,
        ),
        (
            "promptColumn: chosen",
            "spec.task",
            TWICE,
        ),
        ('prompt: "{q}"', "spec.task.prompt", "unknown field"),
        ("beta: 0", "spec.task.beta", "must be above 0: change the number"),
        ("beta: 101", "spec.task.beta", "must be at most 100"),
        ("format: Messages", "spec.task.format", "unknown field"),
    ],
)
def test_an_invalid_preference_is_reported_with_what_to_write(task: str, path: str, message: str) -> None:
    problem = read(PREFERRING.replace("type: Preference", f"type: Preference, {task}")).problems[0]

    assert (problem.path, message in problem.message) == (path, True), problem.message


def test_a_preference_needs_nothing_but_its_type_and_is_judged_by_its_accuracy() -> None:
    (run,) = read(PREFERRING).objects
    assert isinstance(run.value, FederatedFineTune)
    task = run.value.spec.task

    assert isinstance(task, PreferenceTask)
    assert (task.prompt_column, task.chosen_column, task.rejected_column, task.beta, task.max_length) == (
        None,
        "chosen",
        "rejected",
        0.1,
        512,
    )
    assert primary_metric(run.value.spec) == "preferenceAccuracy"
    assert longest_sample(task) == 1024


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
def test_a_path_outside_the_volume_and_a_name_that_kubernetes_refuses_are_refused(change: tuple[str, str], path: str) -> None:
    (problem,) = read(SITE.replace(*change)).problems

    assert problem.path == path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [\n", "file.yaml:2: document 1: invalid YAML"),
        ("a: 1\na: 2\n", "file.yaml:2: document 1: duplicate field 'a'"),
        ("- 1\n", "file.yaml:1: document 1: not a Kubernetes object"),
        ("kind: Pod\n", "file.yaml:1: document 1, Pod: kind: 'Pod' is not a FedPipe kind"),
        (
            "x: 1\nkind: EdgeSite\napiVersion: v1\n",
            "file.yaml:3: document 1, EdgeSite: apiVersion: unknown version 'v1': write fedpipe.io/v1alpha1",
        ),
        ("kind: !!python/object:os.system {}\n", "file.yaml:1: document 1: invalid YAML"),
    ],
)
def test_documents_that_are_not_objects_of_a_known_kind_are_reported(text: str, expected: str) -> None:
    assert messages(text)[0].startswith(expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[a]", "a classification needs two labels: declare all of them, or none to have those that two sites or more have"),
        ("[a, b, a, a]", "2 of these 4 labels are there twice: remove them"),
        ("[]", ""),
        ("[b, a]", ""),
    ],
)
def test_labels_are_none_or_several_each_once(labels: str, message: str) -> None:
    task = f"{{type: SequenceClassification, labels: {labels}}}"
    run = "apiVersion: fedpipe.io/v1alpha1\nkind: FederatedFineTune\nmetadata: {name: a}\n"
    spec = f"spec: {{model: {{source: 'pvc://models/m'}}, task: {task}, store: {{bucket: fedpipe}}}}\n"

    problems = read_documents(run + spec, "a.yaml").problems

    assert [(one.path, one.message) for one in problems] == ([("spec.task.labels", message)] if message else [])


def test_documents_before_invalid_yaml_are_still_read() -> None:
    result = read(f"{SITE}---\na: [\n")

    assert [item.value.metadata.name for item in result.objects] == ["north"]
    assert [(problem.document, problem.line) for problem in result.problems] == [(2, 8)]


def test_the_document_with_every_field_is_read_without_a_problem() -> None:
    text = Path(__file__).with_name("every_field.yaml").read_text()

    assert messages(text) == []
