"""What may not change in a run, field by field: the hash of the fixed ones is another exactly if one of them is."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crds import ROOT
from stand_in_runs import a_run

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.api.documents import read_yaml
from fedpipe_operator.api.parse import parse_object
from fedpipe_operator.errors import UserError
from fedpipe_operator.rounds.revision import IMMUTABLE, is_revision_of, require_unchanged, revision_of

_EVERY_FIELD = ROOT / "tests" / "api" / "every_field.yaml"
RUNS = [one.value for one in read_yaml(_EVERY_FIELD.read_text(), Path(_EVERY_FIELD).name)[0] if one.value["kind"] == "FederatedFineTune"]
RUNS[0]["spec"]["aggregation"]["method"] = "Exact"  # FedIT allows no other planning
OTHERS: dict[str, Any] = {
    "model.attnImplementation": "sdpa",
    "codec.downlink": "Int8",
    "rounds.deadline": "2h",
    "rounds.queueDeadline": "2h",
    "rounds.target.metric": "loss",
    "planning.mode": "Auto",
    "planning.bits": [4, 16],
    "planning.ranks": [4],
    "planning.batchSizes": [8],
    "planning.targetModules": ["k_proj"],
    "planning.modulesToSave": ["model.norm"],
    "planning.importance": "None",
    "planning.depth": "Auto",
    "planning.plans": [],
    "training.learningRate": 0.01,
    "training.learningRateSchedule": "Cosine",
    "training.scaling": "RsLoRA",
    "aggregation.method": "ZeroPad",
    "aggregation.normalization": "EffectiveSteps",
    "aggregation.rule": "Median",
    "aggregation.clipping": "Clip",
    "store.endpoint": "http://elsewhere:9000",
    "task.labels": ["a", "b", "c"],
    "task.problem": "MultiLabel",
    "task.format": "ShareGPT",
    "evaluation.bleuTokenizer": "char",
    "deletionPolicy": "Retain",
}
"""Another value, where none can be made of the one that is there."""


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(value, dict):
        yield path
        return
    for name, inner in value.items():
        yield from leaves(inner, (*path, name))


def changed(document: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    found = copy.deepcopy(document)
    inner = found["spec"]
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = OTHERS.get(".".join(path), another(inner[path[-1]]))
    return found


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value / 2 if isinstance(value, float) else f"{value}x"


def revision(document: dict[str, Any]) -> str:
    resource, problems = parse_object(document, FederatedFineTune)
    assert resource is not None, problems
    assert problems == []
    return revision_of(resource.spec)


FIXED_BY_OTHERS = {("task", "type"), ("aggregation", "optimizer", "type"), ("codec", "type")}
"""Fields that have no other value beside those of the fields next to them."""
FIELDS = [pytest.param(run, path, id=f"{run['metadata']['name']}: {'.'.join(path)}") for run in RUNS for path in leaves(run["spec"])]


@pytest.mark.parametrize(
    ("document", "path"),
    [field for field in FIELDS if field.values[1] not in FIXED_BY_OTHERS and "articles: task.format" not in str(field.id)],
)
def test_another_value_is_another_revision_if_and_only_if_the_field_is_fixed(document: dict[str, Any], path: tuple[str, ...]) -> None:
    is_fixed = any(".".join(path).startswith(fixed) for fixed in IMMUTABLE)

    assert (revision(changed(document, path)) != revision(document)) == is_fixed


@pytest.mark.parametrize(("before", "after"), [({}, {"maxNorm": 5.0}), ({"maxNorm": 5.0}, {}), ({"method": "Exact"}, {"maxNorm": 5.0})])
def test_the_bound_on_an_updates_norm_may_change_from_and_to_its_default(before: dict[str, Any], after: dict[str, Any]) -> None:
    started, edited = (a_run(aggregation=aggregation).spec for aggregation in (before, after))

    assert is_revision_of(revision_of(started), edited)


def test_a_run_that_began_without_a_bound_is_not_refused_for_one() -> None:
    begun, edited = a_run().resource, a_run(aggregation={"maxNorm": 5.0}).resource
    status = begun.status.model_copy(update={"revision": revision_of(begun.spec)})

    require_unchanged(edited.model_copy(update={"status": status}))
    with pytest.raises(UserError, match="SpecChanged"):
        require_unchanged(a_run(aggregation={"method": "ZeroPad"}).resource.model_copy(update={"status": status}))


def test_the_method_may_not_change_from_or_to_its_default() -> None:
    default, other, bounded = (a_run(aggregation=one).spec for one in ({}, {"method": "ZeroPad"}, {"method": "ZeroPad", "maxNorm": 5.0}))

    assert not is_revision_of(revision_of(default), bounded)
    assert not is_revision_of(revision_of(bounded), default)
    assert is_revision_of(revision_of(other), bounded)


def test_another_type_of_task_is_another_revision() -> None:
    sentences, summaries = RUNS[1], copy.deepcopy(RUNS[1])
    summaries["spec"]["task"]["type"] = "Seq2SeqLM"

    assert revision(sentences) != revision(summaries)


@pytest.mark.parametrize(
    ("name", "expected"), [("notes", "71f8f954560d7599"), ("sentences", "1aa4a8909cbd346f"), ("summaries", "1c3c028f2eb328ba")]
)
def test_a_spec_has_the_same_revision_in_every_version_of_the_operator(name: str, expected: str) -> None:
    """Otherwise an upgrade of the operator would refuse every run under way with `SpecChanged`."""
    (found,) = [run for run in RUNS if run["metadata"]["name"] == name]
    document = copy.deepcopy(found)
    for part, field in (("store", "trainerEndpoint"), ("model", "attnImplementation"), ("task", "textPair"), ("planning", "modulesToSave")):
        document["spec"].get(part, {}).pop(field, None)  # fields that runs of the earlier versions could not have
    for field in ("continueFrom", *(["aggregation"] if name == "sentences" else [])):
        document["spec"].pop(field, None)

    assert revision(document) == expected
