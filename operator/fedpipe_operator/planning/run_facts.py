"""Facts of a run that come from its sites' profiles: the labels, the head's shapes, the weights, the common base model."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from fedpipe_operator.api import Problem, SequenceClassificationTask, TaskSpec
from fedpipe_operator.planning.sizes import head_shapes
from fedpipe_operator.sites import SiteProfile

_WITNESSES: Final = 2
"""Sites that must have a label which the spec does not declare: what a single site says is not believed."""
_LEAST_LABELS: Final = 2
_SHOWN_DIGITS: Final = 12
"""Of a fingerprint, in a message."""


@dataclass(frozen=True)
class RunFacts:
    """The fields of a `records.RoundPlan` that come from profiles."""

    labels: tuple[str, ...]
    """In the order of the head's outputs; empty unless the task is a classification."""
    head: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[int, int]]
    """(d_out, d_in) of every weight that may get an adapter."""
    fingerprint: str
    """The fingerprint of the base model that most sites have."""
    commit: str | None
    """The hub's commit of that base, which all tasks use; None for a model that does not come from a hub."""
    wrong_base: dict[str, str]
    """By site with another base model, or other facts about it: the reason why it takes no part, and what to do."""


def facts_of(profiles: Mapping[str, SiteProfile], task: TaskSpec) -> RunFacts:
    """Determine the common base and the facts from its sites' profiles.

    The base is that of most sites, and so are all facts about it together: no site decides over them alone. In a tie the smallest
    fingerprint counts.

    Raises:
        ValueError: there is no profile.
    """
    if not profiles:
        raise ValueError("no site was profiled: at least one profile is needed to know the base model")
    agreeing = _with_common_base(profiles)
    labels = _labels(agreeing.values(), task)
    fingerprint, base = agreeing[min(agreeing)].fingerprint, agreeing[min(agreeing)].base
    # Commits with the same weights may still differ in their tokenizer, so one of them is used by all.
    commit = _most_common((profile.model_revision or "",) for profile in agreeing.values())[0] or None
    return RunFacts(
        labels=labels,
        head=head_shapes(base, len(labels)),
        weights={weight.name: (weight.d_out, weight.d_in) for weight in base.weights},
        fingerprint=fingerprint,
        commit=commit,
        wrong_base=_wrong_base(profiles, agreeing, fingerprint, commit),
    )


def facts_as_fixed(fixed: RunFacts, profiles: Mapping[str, SiteProfile]) -> RunFacts:
    """The facts that round 1 fixed: sites that are profiled later add no label and change no weight, however many they are."""

    def is_fixed(profile: SiteProfile) -> bool:
        weights = {weight.name: (weight.d_out, weight.d_in) for weight in profile.base.weights}
        head = head_shapes(profile.base, len(fixed.labels))
        return (profile.fingerprint, weights, head) == (fixed.fingerprint, fixed.weights, fixed.head)

    same = {name: profile for name, profile in profiles.items() if is_fixed(profile)}
    # What its plan does not tell, such as the layer of a weight, most of those that agree with it decide.
    agreeing = _with_common_base(same) if same else same
    return replace(fixed, wrong_base=_wrong_base(profiles, agreeing, fixed.fingerprint, fixed.commit))


def _with_common_base(profiles: Mapping[str, SiteProfile]) -> dict[str, SiteProfile]:
    """The sites with the base, and the facts about it, that most of them have; there is at least one site."""
    bases = {name: _base_of(profile) for name, profile in profiles.items()}
    common = _most_common(bases.values())
    return {name: profiles[name] for name, base in bases.items() if base == common}


def _wrong_base(profiles: Mapping[str, SiteProfile], agreeing: Collection[str], fingerprint: str, commit: str | None) -> dict[str, str]:
    return {name: wrong_base_reason(profiles[name], fingerprint, commit) for name in sorted(profiles) if name not in agreeing}


def _base_of(profile: SiteProfile) -> tuple[str, str]:
    """The fingerprint, and the facts in which all sites of one base agree: the others depend on their labels, software and devices."""
    depends = {"parameters", "merged_bytes", "supports_gradient_checkpointing", "materialised_attention"}
    return profile.fingerprint, profile.base.model_dump_json(exclude=depends)


def _most_common(values: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The most frequent; of equally frequent ones the smallest."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def sites_without_label(profiles: Mapping[str, SiteProfile], labels: Collection[str]) -> dict[str, str]:
    """By site that has rows, but none with a label of the run: the reason why it takes no part, and what to do."""
    reason = "NoLabels: each of its labels is at fewer than two sites: declare task.labels in a new run, or correct its data"
    return {name: reason for name, one in sorted(profiles.items()) if one.labels and labels and set(labels).isdisjoint(one.labels)}


def too_few_labels(labels: Collection[str], profiles: Mapping[str, SiteProfile], task: TaskSpec) -> str:
    """Why a classification has too few labels to learn anything, and what to do; empty if it has enough, or for another task."""
    if not isinstance(task, SequenceClassificationTask) or task.problem is Problem.REGRESSION or len(labels) >= _LEAST_LABELS:
        return ""
    found = len({label for profile in profiles.values() for label in profile.labels})
    rule = f"of the {found} that the profiles of {len(profiles)} sites name, only those of two sites or more count"
    advice = "declare all labels in spec.task.labels of a new run, or give the sites the same labels"
    return f"a classification needs two labels and has {len(labels)}: task.labels is empty, and {rule}: {advice}"


def dropped_labels_note(profile: SiteProfile, labels: Collection[str]) -> str:
    """A sentence on the site's labels that the run does not have, by their number; empty if it has all."""
    dropped = len(set(profile.labels).difference(labels)) if labels else 0
    if not dropped:
        return ""
    found = f"it drops the rows of {dropped} of its {len(profile.labels)} labels, which fewer than two sites have"
    return f"{found}: declare task.labels in a new run to keep them"


def _labels(agreeing: Collection[SiteProfile], task: TaskSpec) -> tuple[str, ...]:
    """Those that the spec declares, else those that two sites have, or the only one."""
    if not isinstance(task, SequenceClassificationTask) or task.problem is Problem.REGRESSION:
        return ()
    if task.labels:
        return task.labels
    sites = Counter(label for profile in agreeing for label in set(profile.labels))
    return tuple(sorted(label for label, count in sites.items() if count >= min(_WITNESSES, len(agreeing))))


def wrong_base_reason(profile: SiteProfile, fingerprint: str, commit: str | None) -> str:
    """Why a site with another base model than the run's, or other facts about it, takes no part, and what to do.

    Args:
        profile: the site's.
        fingerprint: of the run's base model.
        commit: of that base model on a hub.
    """
    if profile.fingerprint == fingerprint:
        facts = f"WrongBase: its profile has other facts (weights, layers or head) about base model {fingerprint[:_SHOWN_DIGITS]}…"
        return f"{facts} than those of most sites: give its trainer the same image as theirs"
    found = (
        f"WrongBase: its base model has fingerprint {profile.fingerprint[:_SHOWN_DIGITS]}…, the run's has {fingerprint[:_SHOWN_DIGITS]}…"
    )
    if profile.model_revision == commit or profile.model_revision is None or commit is None:
        return f"{found}: give it the same model files as the other sites"
    moved = f"of commit {profile.model_revision[:_SHOWN_DIGITS]}…, the run's is {commit[:_SHOWN_DIGITS]}…"
    return f"{found} ({moved}): the branch or tag of model.source moved in between; name a commit there, in a new run"
