"""Facts of a run that come from its sites' profiles: the labels, the head's shapes, the weights, the common base model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedpipe_operator.api import SequenceClassificationTask, TaskSpec
from fedpipe_operator.planning.sizes import head_shapes
from fedpipe_operator.sites import SiteProfile

_SHOWN_DIGITS = 12
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
    """By site with another base model: the reason why it takes no part, and what to do."""


def facts_of(profiles: Mapping[str, SiteProfile], task: TaskSpec) -> RunFacts:
    """Determine the common base (that of most sites; in a tie the smallest fingerprint) and the facts from its sites' profiles.

    Raises:
        ValueError: there is no profile.
    """
    if not profiles:
        raise ValueError("no site was profiled: at least one profile is needed to know the base model")
    fingerprint = _most_common(profile.fingerprint for profile in profiles.values())
    agreeing = [profiles[name] for name in sorted(profiles) if profiles[name].fingerprint == fingerprint]
    labels = _labels(agreeing, task)
    base = agreeing[0].base
    # Commits with the same weights may still differ in their tokenizer, so one of them is used by all.
    commit = _most_common(profile.model_revision or "" for profile in agreeing) or None
    return RunFacts(
        labels=labels,
        head=head_shapes(base.head, len(labels)),
        weights={weight.name: (weight.d_out, weight.d_in) for weight in base.weights},
        fingerprint=fingerprint,
        commit=commit,
        wrong_base={
            name: wrong_base_reason(profile, fingerprint, commit)
            for name, profile in sorted(profiles.items())
            if profile.fingerprint != fingerprint
        },
    )


def _most_common(values: Iterable[str]) -> str:
    """The most frequent; of equally frequent ones the smallest."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _labels(agreeing: list[SiteProfile], task: TaskSpec) -> tuple[str, ...]:
    if not isinstance(task, SequenceClassificationTask):
        return ()
    return task.labels or tuple(sorted({label for profile in agreeing for label in profile.labels}))


def wrong_base_reason(profile: SiteProfile, fingerprint: str, commit: str | None) -> str:
    """Why a site with another base model than the run's, of this fingerprint and commit, takes no part, and what to do."""
    found = (
        f"WrongBase: its base model has fingerprint {profile.fingerprint[:_SHOWN_DIGITS]}…, the run's has {fingerprint[:_SHOWN_DIGITS]}…"
    )
    if profile.model_revision == commit or profile.model_revision is None or commit is None:
        return f"{found}: give it the same model files as the other sites"
    moved = f"of commit {profile.model_revision[:_SHOWN_DIGITS]}…, the run's is {commit[:_SHOWN_DIGITS]}…"
    return f"{found} ({moved}): the branch or tag of model.source moved in between; name a commit there, in a new run"
