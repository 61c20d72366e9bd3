"""Facts of a run that come from its sites' profiles."""

from dataclasses import replace

import pytest
from site_profiles import MPNET, a_site

from fedpipe_operator.api import CausalLMTask, SequenceClassificationTask
from fedpipe_operator.planning import facts_as_fixed, facts_of
from fedpipe_trainer.contract import BaseModelFacts

CLASSES = SequenceClassificationTask()


def test_labels_are_the_sorted_union_over_the_sites_and_shape_the_head() -> None:
    fleet = {"a": a_site(base=MPNET, labels=("sport", "art")), "b": a_site(base=MPNET, labels=("war", "art"))}

    facts = facts_of(fleet, CLASSES)

    assert facts.labels == ("art", "sport", "war")
    assert facts.head == {"classifier.dense.weight": (768, 768), "classifier.out_proj.weight": (3, 768)}


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
def test_one_site_decides_nothing_about_the_base_whatever_its_name(base: BaseModelFacts) -> None:
    fleet = {"0": a_site("0", base=base)} | {name: a_site(name, base=MPNET) for name in "ab"}

    facts = facts_of(fleet, CLASSES)

    assert replace(facts, wrong_base={}) == facts_of({name: fleet[name] for name in "ab"}, CLASSES)
    assert facts.wrong_base == {"0": TOLD}


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
