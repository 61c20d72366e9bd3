"""Facts of a run that come from its sites' profiles."""

import pytest
from site_profiles import MPNET, a_site

from fedpipe_operator.api import CausalLMTask, SequenceClassificationTask
from fedpipe_operator.planning import facts_of

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
        "b": "WrongBase: its base model has fingerprint 000000000000…, but most sites have ffffffffffff…: give it the same model files"
    }


def test_of_equally_common_bases_the_smallest_fingerprint_is_taken() -> None:
    fleet = {"a": a_site(fingerprint="f" * 64), "b": a_site(fingerprint="0" * 64)}

    assert facts_of(fleet, CLASSES).fingerprint == "0" * 64


def test_without_a_profile_there_are_no_facts() -> None:
    with pytest.raises(ValueError, match="no site was profiled"):
        facts_of({}, CLASSES)
