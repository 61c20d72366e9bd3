"""The YAML that `fedpipe init` writes: valid for the API, and whatever a file, a column or a label is called, nothing but what is meant."""

from typing import Any, Final

import pytest
import yaml
from crds import is_accepted
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.api.parse import read_documents
from fedpipe_operator.starter import Choices, Guess, Site, write_document
from fedpipe_operator.starter.document import max_length, scalar
from fedpipe_trainer.contract.inspection import ModelFacts

BERT: Final = ModelFacts(architecture="bert", kind="encoder", positions=512)
CLASSES: Final = {"type": "SequenceClassification", "text": "text", "label": "label", "labels": ["a", "b"]}
HOSTILE: Final = [
    "a: b",
    "text\n  policy: {maxShownRows: 20}",
    "x # y",
    "x\u2028policy: {}",
    "x\x85---\x85kind: EdgeSite",
    '"quoted"',
    "'single'",
    "{text}",
    "[a]",
    "&anchor *alias !!python/object",
    "%YAML 1.2",
    "- item",
    "? key",
    "null",
    "Yes",
    "1e3",
    "0x10",
    "~",
    "",
    " padded ",
    "größe",
    "文本",
    "🙂",
    "\ufeffbom",
    "\u202eright to left",
    "tab\there",
    "ends\n",
    "back\\slash",
    "---",
    "...",
    "x" * 253,
]
TEXTS: Final = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def site(name: str = "ward", origin: str = "From here.", columns: tuple[str, ...] = ("text", "label")) -> Site:
    return Site(name, f"{name}-data", "train.jsonl", "validation.jsonl", origin, columns)


def choices(*sites: Site, **changes: Any) -> Choices:
    given_ = {"name": "notes", "source": "pvc://models/bert", "model_note": "The base model.", "model": BERT, "model_claim": "models"}
    return Choices(sites=sites or (site(),), **(given_ | changes))


def guess(fields: dict[str, object] = CLASSES, columns: tuple[str, ...] = ("text", "label"), **changes: Any) -> Guess:
    return Guess(fields, columns, "a reason", **changes)


def objects_of(text: str) -> list[EdgeSite | FederatedFineTune]:
    result = read_documents(text, "fedpipe.yaml")
    assert result.problems == ()
    return [one.value for one in result.objects]


def test_the_run_comes_first_and_then_its_sites_which_it_selects() -> None:
    run, north, south = objects_of(write_document(guess(), choices(site("north"), site("south"))))

    assert isinstance(run, FederatedFineTune)
    assert isinstance(north, EdgeSite)
    assert [one.metadata.name for one in (run, north, south)] == ["notes", "north", "south"]
    assert run.spec.sites.selector.match_labels == north.metadata.labels == south.metadata.labels == {"fine-tune": "notes"}
    assert north.spec.policy.columns == ("text", "label")


def test_one_site_alone_is_allowed_by_its_policy_and_of_two_neither_is() -> None:
    _, alone = objects_of(write_document(guess(), choices()))
    _, *together = objects_of(write_document(guess(), choices(site("north"), site("south"))))

    assert [one.spec.policy.min_sites for one in (alone, *together) if isinstance(one, EdgeSite)] == [1, 2, 2]


@pytest.mark.parametrize("name", ["no", "on", "null", "true", "y"])
def test_a_run_and_a_site_may_be_called_by_a_word_that_yaml_reads_as_something_else(name: str) -> None:
    run, alone = objects_of(write_document(guess(), choices(site(name), name=name)))

    assert [one.metadata.name for one in (run, alone)] == [name, name]
    assert alone.metadata.labels == {"fine-tune": name}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_text_is_read_as_itself_by_every_reader(name: str) -> None:
    assert yaml.safe_load(f"key: {scalar(name)}") == {"key": name}
    assert yaml.safe_load(f"key: [{scalar(name)}, {scalar(name)}]") == {"key": [name, name]}


@pytest.mark.parametrize("name", ["no", "y", "on", "null", "true"])
def test_a_run_or_a_site_may_be_called_by_a_word_that_yaml_reads_as_something_else(name: str) -> None:
    run, ward = objects_of(write_document(guess(), choices(site(name), name=name)))

    assert isinstance(run, FederatedFineTune)
    assert run.metadata.name == ward.metadata.name == name
    assert run.spec.sites.selector.match_labels == ward.metadata.labels == {"fine-tune": name}


def test_the_line_end_of_a_template_is_written_as_people_write_it() -> None:
    text = write_document(guess({"type": "CausalLM", "prompt": "{question}\n", "response": "{answer}"}), choices())

    assert r'prompt: "{question}\n"' in text


def test_every_comment_begins_as_a_sentence() -> None:
    text = write_document(guess(instead=("to read another",)), choices())

    assert "  # A reason.\n  # To read another.\n" in text


@given(TEXTS)
def test_any_text_is_read_as_itself(name: str) -> None:
    assert yaml.safe_load(f"key: [{scalar(name)}]") == {"key": [name]}


def written_of(name: str) -> str:
    """A document in which everything that a user's file decides has this name."""
    fields = CLASSES | {"text": name, "label": name, "labels": [name, f"{name} 2"]}
    named = guess(fields, (name,), instead=(name, f"to read {name} instead"), labels_note=name)
    named = Guess(named.fields, named.columns, f"'{name}' has texts", named.instead, named.labels_note)
    return write_document(named, choices(site(origin=f"From {name}.", columns=(name,)), model_note=f"The folder {name}."))


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_no_name_ends_the_text_or_the_comment_that_it_is_in(name: str) -> None:
    documents = list(yaml.safe_load_all(written_of(name)))

    assert [one["kind"] for one in documents] == ["FederatedFineTune", "EdgeSite"]
    assert set(documents[0]["spec"]) == {"model", "task", "sites", "rounds"}
    assert set(documents[1]["spec"]) == {"data", "modelClaims", "policy"}
    assert documents[1]["spec"]["policy"] == {"columns": [name], "minSites": 1}
    assert documents[0]["spec"]["task"]["text"] == name


@given(TEXTS)
def test_no_name_of_any_kind_does(name: str) -> None:
    documents = list(yaml.safe_load_all(written_of(name)))

    assert documents[1]["spec"]["policy"] == {"columns": [name], "minSites": 1}
    assert [set(one["spec"]) for one in documents] == [{"model", "task", "sites", "rounds"}, {"data", "modelClaims", "policy"}]


@pytest.mark.parametrize(
    "fields",
    [
        CLASSES,
        CLASSES | {"textPair": "other"},
        {"type": "SequenceClassification", "text": "text", "label": "label", "problem": "Regression"},
        CLASSES | {"problem": "MultiLabel"},
        {"type": "CausalLM", "format": "Messages", "messages": "chat", "tools": "tools"},
        {"type": "CausalLM", "format": "Text", "packing": True, "text": "body"},
        {"type": "CausalLM", "prompt": "{question}\n", "response": "{answer}"},
        {"type": "Seq2SeqLM", "format": "Alpaca"},
        {"type": "Preference", "promptColumn": "prompt"},
    ],
)
@pytest.mark.parametrize(
    "model", [BERT, ModelFacts(), ModelFacts(architecture="new", kind="decoder", positions=100, has_default_targets=False)]
)
def test_every_task_passes_the_schemas_of_the_api(fields: dict[str, object], model: ModelFacts) -> None:
    text = write_document(guess(fields), choices(model=model))

    assert all(is_accepted(document) for document in yaml.safe_load_all(text))
    assert len(objects_of(text)) == 2


def test_a_line_of_the_document_is_no_longer_than_a_screen() -> None:
    text = write_document(guess(instead=("word " * 100,)), choices(site(origin="word " * 100)))

    assert max(map(len, text.splitlines())) <= 116


@pytest.mark.parametrize(
    ("characters", "positions", "expected"),
    [(0, None, 64), (200, None, 128), (3000, None, 2048), (10**6, None, 2048), (3000, 512, 512), (10, 40, 40)],
)
def test_max_length_takes_the_longest_row_as_far_as_the_model_has_positions(characters: int, positions: int | None, expected: int) -> None:
    assert max_length(guess(characters=characters), ModelFacts(positions=positions)) == expected


def test_a_model_of_few_positions_generates_less_and_one_of_unknown_weights_adapts_all() -> None:
    odd = ModelFacts(architecture="new", kind="decoder", positions=100, has_default_targets=False)
    (run, _) = objects_of(write_document(guess({"type": "CausalLM", "format": "Alpaca"}), choices(model=odd)))

    assert isinstance(run, FederatedFineTune)
    assert run.spec.evaluation.max_new_tokens == 50
    assert run.spec.planning.target_modules == ("all-linear",)
