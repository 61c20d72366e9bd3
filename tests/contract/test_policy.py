"""Of two policies the stricter counts, field by field: what both allow is allowed, and nothing else."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_trainer.contract import (
    CausalLM,
    DataPolicy,
    DataUse,
    RunSelector,
    Seq2SeqLM,
    SequenceClassification,
    TrainingLosses,
    denial,
    stricter,
)

WORDS = st.sampled_from(["a", "b", "c"])
TYPES = st.sampled_from(["SequenceClassification", "CausalLM", "Seq2SeqLM"])
LABELS = st.dictionaries(st.sampled_from(["study", "team"]), WORDS, max_size=2)


def lists(values: Any) -> Any:
    return st.none() | st.lists(values, max_size=3).map(tuple)


POLICIES = st.builds(
    DataPolicy,
    runs=st.builds(RunSelector, names=lists(WORDS), match_labels=LABELS),
    columns=lists(WORDS),
    task_types=lists(TYPES),
    labels=lists(WORDS),
    max_labels=st.integers(0, 4),
    max_shown_rows=st.integers(0, 4),
    min_sites=st.integers(1, 4),
    local_baseline=st.booleans(),
    training_losses=st.sampled_from(TrainingLosses),
)
OBJECTIVES = st.one_of(
    st.builds(SequenceClassification, text=WORDS, label=WORDS),
    st.sampled_from([CausalLM(prompt="{a}", response="{b}"), Seq2SeqLM(prompt="{a} {c}", response="{b}")]),
)
USES = st.builds(
    DataUse, run=WORDS, run_labels=LABELS, objective=OBJECTIVES, contributors=st.integers(1, 4), is_local_baseline=st.booleans()
)


@given(POLICIES, POLICIES)
def test_the_order_of_two_policies_does_not_matter(one: DataPolicy, other: DataPolicy) -> None:
    assert stricter(one, other) == stricter(other, one)


@given(POLICIES, POLICIES, POLICIES)
def test_three_policies_may_be_merged_in_any_order(one: DataPolicy, other: DataPolicy, third: DataPolicy) -> None:
    assert stricter(stricter(one, other), third) == stricter(one, stricter(other, third))


@given(POLICIES, POLICIES)
def test_a_policy_that_is_merged_again_changes_nothing(one: DataPolicy, other: DataPolicy) -> None:
    both = stricter(one, other)

    assert stricter(one, one) == one
    assert stricter(both, one) == both
    assert stricter(both, both) == both


@given(POLICIES, POLICIES, USES)
def test_a_use_is_allowed_if_and_only_if_both_policies_allow_it(one: DataPolicy, other: DataPolicy, use: DataUse) -> None:
    # A baseline needs the permission of the policy whose minSites it falls short of; merged, both count together.
    is_allowed = not denial(one, use) and not denial(other, use)
    falls_short = use.is_local_baseline and use.contributors < max(one.min_sites, other.min_sites)

    allowed_by_both = not denial(stricter(one, other), use)

    assert not allowed_by_both or is_allowed
    if not falls_short:
        assert allowed_by_both == is_allowed


@given(POLICIES, POLICIES)
def test_no_field_is_looser_than_in_either(one: DataPolicy, other: DataPolicy) -> None:
    both = stricter(one, other)

    for policy in (one, other):
        assert both.max_labels <= policy.max_labels
        assert both.max_shown_rows <= policy.max_shown_rows
        assert both.min_sites >= policy.min_sites
        assert both.local_baseline <= policy.local_baseline
        assert both.training_losses is TrainingLosses.MEAN or policy.training_losses is TrainingLosses.BY_STEP
        for name in ("columns", "task_types", "labels"):
            mine, merged = getattr(policy, name), getattr(both, name)
            assert mine is None or (merged is not None and set(merged) <= set(mine))


@given(POLICIES, POLICIES, WORDS, LABELS)
def test_both_select_a_run_if_and_only_if_each_does(one: DataPolicy, other: DataPolicy, name: str, labels: dict[str, str]) -> None:
    each = one.runs.matches(name, labels) and other.runs.matches(name, labels)

    assert stricter(one, other).runs.matches(name, labels) == each


def test_policies_that_require_different_values_of_a_label_select_no_run() -> None:
    one, other = (DataPolicy(runs=RunSelector(match_labels={"study": value})) for value in "ab")

    for value in "ab":
        assert not stricter(one, other).runs.matches("run", {"study": value})


NOTES = SequenceClassification(text="note", label="ward")

NOT_SELECTED = "policy.runs does not select the run triage, by its name or its labels"


ONE_COLUMN: Final = "correct task.label if it is misspelled, or have the data owner add it (whether the data have it is not told)"
TWO_COLUMNS: Final = (
    "correct task.text and task.label if a name is misspelled, or have the data owner add them (whether the data have them is not told)"
)


def use(**changes: Any) -> DataUse:
    return DataUse(**({"run": "triage", "run_labels": {"study": "x"}, "objective": NOTES, "contributors": 3} | changes))


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (DataPolicy(), ""),
        (DataPolicy(runs=RunSelector(names=("triage",), match_labels={"study": "x"})), ""),
        (DataPolicy(runs=RunSelector(names=())), NOT_SELECTED),
        (
            DataPolicy(runs=RunSelector(match_labels={"study": "y"})),
            NOT_SELECTED,
        ),
        (DataPolicy(columns=("note", "ward", "age")), ""),
        (DataPolicy(columns=("note",)), f"policy.columns does not allow the column 'ward' (task.label): {ONE_COLUMN}"),
        (DataPolicy(columns=()), f"policy.columns does not allow the columns 'note' (task.text), 'ward' (task.label): {TWO_COLUMNS}"),
        (DataPolicy(task_types=("CausalLM",)), "policy.taskTypes does not allow SequenceClassification"),
        (DataPolicy(min_sites=3), ""),
        (
            DataPolicy(min_sites=4),
            "policy.minSites is 4, and the run may aggregate as few as 3: raise sites.quorum, or add sites",
        ),
    ],
)
def test_a_denial_names_the_field_of_the_policy_and_the_words_of_the_task(policy: DataPolicy, reason: str) -> None:
    assert denial(policy, use()) == reason


def test_every_reason_is_told() -> None:
    policy = DataPolicy(runs=RunSelector(names=()), columns=(), task_types=(), min_sites=9)

    assert denial(policy, use()).count("; ") == 3


@pytest.mark.parametrize(("is_allowed", "reason"), [(True, ""), (False, "policy.localBaseline does not allow to train the site alone")])
def test_a_site_is_trained_alone_only_where_its_policy_allows_it(is_allowed: bool, reason: str) -> None:
    policy = DataPolicy(local_baseline=is_allowed)

    assert denial(policy, use(contributors=1, is_local_baseline=True)) == reason
    assert denial(policy, use(contributors=1)) != ""
