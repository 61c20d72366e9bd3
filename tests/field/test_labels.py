"""Labels that sites spell differently, and labels that tell nothing: what the plan, the condition, the event and the report say."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console
from site_profiles import a_site
from stand_in_runs import World, a_run
from stand_in_runs import a_site as an_edge_site
from trainer_results import a_profile, good_trainer

from fedpipe_operator import names
from fedpipe_operator.api import SequenceClassificationTask
from fedpipe_operator.cli.plan import _print as print_plan
from fedpipe_operator.planning import label_notes
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import ProfileTask

UNDECLARED: Final = SequenceClassificationTask(type="SequenceClassification")
DECLARED: Final = SequenceClassificationTask(type="SequenceClassification", labels=("0", "1"))


def notes(labels: Mapping[str, Sequence[str]], published: Mapping[str, Sequence[str]] | None = None) -> tuple[str, ...]:
    profiles = {site: a_site(labels=tuple(found)) for site, found in labels.items()}
    return label_notes(profiles, UNDECLARED, published or {})


def test_labels_of_one_site_alone_are_counted_with_the_site() -> None:
    (lone,) = notes({"a": ("red", "blue"), "b": ("red", "blue", "green"), "c": ("x", "y", "red")})

    assert lone == (
        "3 labels that one site alone has: 1 at b, 2 at c: the run does not learn them; "
        "declare task.labels in a new run to keep them, or give the sites the same labels"
    )


def test_such_labels_are_spelled_out_only_where_the_sites_policy_lists_them() -> None:
    (lone,) = notes({"a": ("red",), "b": ("red", "green"), "c": ("red", "secret")}, {"b": ("green", "red"), "a": ("secret",)})

    assert "1 at b ('green'), 1 at c:" in lone


@pytest.mark.parametrize(
    "spellings",
    [
        (("0", "1"), ("0.0", "1.0")),
        (("true", "false"), ("True", "False")),
        (("true", "false"), ("1", "0")),
        (("1.0", "0.0"), ("True", "False")),
        (("Café", "thé"), ("Cafe\u0301", "the\u0301")),
        (("spam\u200b", "ham\ufeff"), ("spam", "ham")),
        (("Not spam", "spam"), ("not  spam", "SPAM")),
        (("\uff11", "\uff12"), ("1", "2")),
    ],
)
def test_labels_that_sites_spell_differently_are_told_as_such(spellings: tuple[Sequence[str], Sequence[str]]) -> None:
    one, other = spellings
    lone, alike = notes({"a": one, "b": other})

    assert lone.startswith("4 labels that one site alone has: 2 at a, 2 at b")
    assert alike.startswith("4 of the 4 labels differ from another one by their spelling alone")


def test_a_spelling_that_two_sites_share_is_told_though_no_label_is_alone() -> None:
    (alike,) = notes({"a": ("0", "1"), "b": ("0", "1"), "c": ("0.0", "1.0"), "d": ("0.0", "1.0")})

    assert alike.startswith("4 of the 4 labels differ from another one by their spelling alone")
    assert "at a, b, c, d" in alike


def test_labels_that_are_the_same_everywhere_are_told_nothing_about() -> None:
    assert notes({"a": ("red", "blue"), "b": ("blue", "red")}) == ()
    assert notes({"a": ("red", "blue")}) == ()


def test_declared_labels_are_the_authors_words() -> None:
    profiles = {site: a_site(labels=("0", "1")) for site in "ab"}

    assert label_notes(profiles, DECLARED, {}) == ()


def test_one_class_at_every_site_is_told() -> None:
    profiles = {site: a_site(labels=("0", "1"), train_labels=1, validation_labels=1) for site in "ab"}
    (note,) = label_notes(profiles, DECLARED, {})

    assert note.startswith("the validation rows of every site have a single label, so accuracy is 1 for a model that always answers it")


@pytest.mark.parametrize("counts", [{"train_labels": 1, "validation_labels": 2}, {"train_labels": 2, "validation_labels": 1}])
def test_a_site_with_one_class_is_named(counts: dict[str, int]) -> None:
    profiles = {"a": a_site(), "b": a_site(**counts)}

    assert label_notes(profiles, DECLARED, {}) == ("training or validation rows of a single label at b: accuracy there says little",)


def test_notes_on_a_large_fleet_are_bounded() -> None:
    labels = {f"site-{at:04}": (*("red", "blue"), *(f"label {at} {n}" + "x" * 900 for n in range(50))) for at in range(1000)}

    assert all(len(note) < 4000 for note in notes(labels, labels))


def a_trainer_of(labels: Mapping[str, Sequence[str]], **counts: int) -> Any:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask):
            return a_profile(task, labels=tuple(labels[task.site]), **counts)
        return good_trainer(task, folder)

    return trainer


def test_the_plan_a_condition_and_an_event_of_a_run_have_them(tmp_path: Path) -> None:
    common = ("art", "politics", "sports")
    found = {"site-a": common, "site-b": (*common, "secret"), "site-c": common}
    world = World(a_run(task={"type": "SequenceClassification"}, rounds={"count": 2}), tmp_path, a_trainer_of(found))
    world.settle()

    plan = required_object(world.store, names.round_plan(1), RoundPlan)
    assert plan.label_notes[0].startswith("1 label that one site alone has: 1 at site-b: the run does not learn it")
    assert world.message("Planned") == "; ".join(plan.label_notes)
    (event,) = (event for event in world.events if event.reason == "LabelsDiffer")
    assert (event.message, event.warning) == ("; ".join(plan.label_notes), True)
    assert "secret" not in world.run.resource.status.model_dump_json()


def test_a_policy_that_lists_a_label_has_it_told(tmp_path: Path) -> None:
    common = ("art", "politics", "sports")
    found = {"site-a": common, "site-b": (*common, "war"), "site-c": common}
    run = a_run(task={"type": "SequenceClassification"})
    policy = an_edge_site("site-b", policy={"minSites": 1, "labels": [*common, "war"]})
    world = World(replace(run, sites=tuple(policy if site.name == "site-b" else site for site in run.sites)), tmp_path, a_trainer_of(found))
    world.settle()

    assert "1 at site-b ('war')" in world.message("Planned")


def test_two_sites_that_spell_all_labels_differently_fail_with_the_reason(tmp_path: Path) -> None:
    found = {"site-a": ("0", "1"), "site-b": ("0.0", "1.0"), "site-c": ("false", "true")}
    world = World(a_run(task={"type": "SequenceClassification"}), tmp_path, a_trainer_of(found))
    world.settle()

    assert world.conditions()["Failed"] == "TooFewLabels"
    assert "2 at site-a, 2 at site-b, 2 at site-c" in world.message("Failed")
    assert "6 of the 6 labels differ from another one by their spelling alone" in world.message("Failed")


def test_a_run_of_one_class_is_told_in_its_condition(tmp_path: Path) -> None:
    found = dict.fromkeys(("site-a", "site-b", "site-c"), ("a", "b", "c"))
    world = World(a_run(), tmp_path, a_trainer_of(found, train_labels=1, validation_labels=1))
    world.settle()

    assert "the validation rows of every site have a single label" in world.message("Planned")


def test_fedpipe_plan_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    note = "2 labels that one site alone has: 2 at a [red]"
    print_plan(
        RoundPlan(
            round=1, started_at=0.0, fingerprint="f", weights={}, plans={}, selected=(), evaluators=(), needed=1, label_notes=(note,)
        ),
        Console(),
    )

    assert note in capsys.readouterr().out
