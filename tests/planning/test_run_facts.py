"""Facts of a run that come from its sites' profiles."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_profiles import MPNET, a_site

from fedpipe_operator.api import CausalLMTask, SequenceClassificationTask
from fedpipe_operator.planning import dropped_labels_note, facts_as_fixed, facts_of, sites_without_label, too_few_labels
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts

CLASSES = SequenceClassificationTask()


def labelled(*labels: tuple[str, ...], **fields: Any) -> dict[str, SiteProfile]:
    """A site with each of these sets of labels."""
    return {name: a_site(name, base=MPNET, labels=own, **fields) for name, own in zip("abcdefgh", labels, strict=False)}


def test_labels_that_the_spec_does_not_declare_are_those_of_two_sites_sorted_and_they_shape_the_head() -> None:
    facts = facts_of(labelled(("war", "sport", "art"), ("art", "travel"), ("sport", "food")), CLASSES)

    assert facts.labels == ("art", "sport")
    assert facts.head == {"classifier.dense.weight": (768, 768), "classifier.out_proj.weight": (2, 768)}


def test_a_label_that_one_site_names_twice_is_one_site_s() -> None:
    assert facts_of(labelled(("art", "art", "war"), ("war",)), CLASSES).labels == ("war",)


def test_a_run_of_one_site_has_that_site_s_labels() -> None:
    assert facts_of(labelled(("war", "art")), CLASSES).labels == ("art", "war")


@given(st.lists(st.sets(st.sampled_from("uvwxyz"), min_size=1), min_size=2, max_size=6), st.integers(0, 5), st.sets(st.text(), max_size=20))
def test_no_site_alone_adds_a_label_and_of_three_that_agree_none_removes_one(own: list[set[str]], liar: int, lies: set[str]) -> None:
    honest = labelled(*(tuple(one) for one in own))
    name = "abcdef"[liar % len(own)]
    others = [set(one.labels) for other, one in honest.items() if other != name]

    found = set(facts_of(honest | {name: a_site(name, base=MPNET, labels=tuple(lies))}, CLASSES).labels)

    assert found <= set().union(*others)
    assert found >= {label for label in "uvwxyz" if sum(label in one for one in others) >= 2}


def test_a_site_without_any_label_of_the_run_takes_no_part_and_is_told_what_to_do() -> None:
    fleet = labelled(("art", "war"), ("art", "war"), ("food",))

    assert sites_without_label(fleet, ("art", "war")) == {
        "c": "NoLabels: each of its labels is at fewer than two sites: declare task.labels in a new run, or correct its data"
    }
    assert sites_without_label({"x": a_site("x")}, ()) == {}, "of a language model"


def test_a_site_is_told_how_many_of_its_labels_are_dropped_and_not_which() -> None:
    note = dropped_labels_note(a_site(labels=("art", "secret", "war")), ("art", "war"))

    assert note == "it drops the rows of 1 of its 3 labels, which fewer than two sites have: declare task.labels in a new run to keep them"
    assert dropped_labels_note(a_site(labels=("art", "war")), ("art", "war")) == ""
    assert dropped_labels_note(a_site(), ()) == ""


def test_a_classification_of_fewer_than_two_labels_has_too_few_and_says_what_to_do() -> None:
    fleet = labelled(("art", "war"), ("art", "food"))

    assert too_few_labels(("art",), fleet, CLASSES) == (
        "a classification needs two labels and has 1: task.labels is empty, and of the 3 that the profiles of 2 sites name, only those of "
        "two sites or more count: declare all labels in spec.task.labels of a new run, or give the sites the same labels"
    )
    assert too_few_labels(("art", "war"), fleet, CLASSES) == ""
    assert too_few_labels((), {"x": a_site("x")}, CausalLMTask(prompt="{a}", response="{b}")) == ""


def test_labels_that_the_objective_names_keep_their_order() -> None:
    facts = facts_of({"a": a_site(base=MPNET, labels=("art",))}, SequenceClassificationTask(labels=("war", "art")))

    assert facts.labels == ("war", "art")


def test_a_language_model_has_neither_labels_nor_head() -> None:
    facts = facts_of({"a": a_site()}, CausalLMTask(prompt="{a}", response="{b}"))

    assert (facts.labels, facts.head, facts.wrong_base) == ((), {}, {})
    assert facts.weights["model.layers.0.self_attn.k_proj"] == (192, 576)


def test_sites_with_another_base_than_most_are_named_and_their_labels_are_ignored() -> None:
    fleet = {
        "a": a_site(base=MPNET, labels=("art",), fingerprint="f" * 64),
        "b": a_site(base=MPNET, labels=("war",), fingerprint="0" * 64),
        "c": a_site(base=MPNET, labels=("art",), fingerprint="f" * 64),
    }

    facts = facts_of(fleet, CLASSES)

    assert (facts.fingerprint, facts.labels) == ("f" * 64, ("art",))
    assert facts.wrong_base == {
        "b": "WrongBase: its base model has fingerprint 000000000000…, the run's has ffffffffffff…: "
        "give it the same model files as the other sites"
    }


A, B = "a" * 40, "b" * 40
"""Commits of a hub."""


def test_of_a_hubs_commits_with_the_same_weights_all_sites_use_the_most_common() -> None:
    fleet = {name: a_site(name, model_revision=commit) for name, commit in (("x", B), ("y", A), ("z", B))}

    facts = facts_of(fleet, CausalLMTask(prompt="{a}", response="{b}"))

    assert (facts.commit, facts.wrong_base) == (B, {})
    assert facts_of({"x": fleet["x"], "y": fleet["y"]}, CLASSES).commit == A, "of equally common ones the smallest"


def test_a_model_that_comes_from_no_hub_has_no_commit() -> None:
    assert facts_of({"x": a_site()}, CLASSES).commit is None


def test_a_site_that_was_profiled_after_the_branch_moved_is_told_to_name_a_commit() -> None:
    fleet = {name: a_site(name, model_revision=A) for name in "xy"} | {"z": a_site("z", model_revision=B, fingerprint="0" * 64)}

    facts = facts_of(fleet, CLASSES)

    assert facts.commit == A
    assert facts.wrong_base == {
        "z": "WrongBase: its base model has fingerprint 000000000000…, the run's has aaaaaaaaaaaa… (of commit bbbbbbbbbbbb…, the run's is "
        "aaaaaaaaaaaa…): the branch or tag of model.source moved in between; name a commit there, in a new run"
    }


def test_of_equally_common_bases_the_smallest_fingerprint_is_taken() -> None:
    fleet = {"a": a_site(fingerprint="f" * 64), "b": a_site(fingerprint="0" * 64)}

    assert facts_of(fleet, CLASSES).fingerprint == "0" * 64


OTHERWISE = {
    "no weights": MPNET.model_copy(update={"weights": ()}),
    "a weight less": MPNET.model_copy(update={"weights": MPNET.weights[1:]}),
    "another shape": MPNET.model_copy(update={"weights": (MPNET.weights[0].model_copy(update={"d_out": 1}), *MPNET.weights[1:])}),
    "another layer": MPNET.model_copy(update={"weights": (MPNET.weights[0].model_copy(update={"layer": 7}), *MPNET.weights[1:])}),
    "another head": MPNET.model_copy(update={"head": {"classifier.weight": (-1, 10**6)}}),
    "another width": MPNET.model_copy(update={"hidden_size": 1}),
}
"""Facts that one site tells about the base that all have."""
TOLD = (
    "WrongBase: its profile has other facts (weights, layers or head) about base model aaaaaaaaaaaa… than those of most sites: "
    "give its trainer the same image as theirs"
)


@pytest.mark.parametrize("base", OTHERWISE.values(), ids=OTHERWISE)
def test_facts_of_the_model_are_those_of_most_sites_as_a_whole_and_not_of_the_first_by_name(base: BaseModelFacts) -> None:
    fleet = {"0": a_site("0", base=base)} | {name: a_site(name, base=MPNET) for name in "ab"}

    facts = facts_of(fleet, CLASSES)

    assert replace(facts, wrong_base={}) == facts_of({name: fleet[name] for name in "ab"}, CLASSES)
    assert facts.wrong_base == {"0": TOLD}


def test_facts_of_the_model_are_what_sites_tell_as_a_whole_and_not_field_by_field() -> None:
    """Of each field, two of these three sites tell the same; no site tells all of that."""
    changes = [{"hidden_size": 1}, {"layers": 7}, {"vocabulary_size": 9}]
    fleet = {name: a_site(name, base=MPNET.model_copy(update=one)) for name, one in zip("abc", changes, strict=True)}

    facts = facts_of(fleet, CLASSES)

    assert len(facts.wrong_base) == 2
    assert set(facts.wrong_base.values()) == {TOLD}


@pytest.mark.parametrize("base", OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.parametrize("later", [1, 5])
def test_sites_that_are_profiled_later_decide_nothing_however_many_they_are(base: BaseModelFacts, later: int) -> None:
    first = {name: a_site(name, base=MPNET) for name in "abcdef"}
    fixed = facts_of(first, CLASSES)
    joined = {f"{number}": a_site(f"{number}", base=base) for number in range(later)}

    facts = facts_as_fixed(fixed, first | joined)

    assert facts == replace(fixed, wrong_base=dict.fromkeys(joined, TOLD))


def test_a_site_that_is_profiled_later_with_another_base_is_told_so() -> None:
    fixed = facts_of({"a": a_site("a", base=MPNET)}, CLASSES)

    facts = facts_as_fixed(fixed, {"b": a_site("b", base=MPNET, fingerprint="0" * 64)})

    assert facts.wrong_base["b"].startswith("WrongBase: its base model has fingerprint 000000000000…, the run's has aaaaaaaaaaaa…")


def test_facts_that_depend_on_a_site_s_labels_software_or_device_may_differ() -> None:
    """A head has as many outputs as the site has labels, until the labels of all are known."""
    larger = {"parameters": MPNET.parameters + 4 * 769, "merged_bytes": MPNET.merged_bytes + 16 * 769}
    other = MPNET.model_copy(update={"materialised_attention": True, "supports_gradient_checkpointing": False} | larger)

    assert facts_of({"a": a_site("a", base=MPNET), "b": a_site("b", base=other)}, CLASSES).wrong_base == {}


def test_without_a_profile_there_are_no_facts() -> None:
    with pytest.raises(ValueError, match="no site was profiled"):
        facts_of({}, CLASSES)
