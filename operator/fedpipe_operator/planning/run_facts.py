"""Facts of a run that come from its sites' profiles: the labels, the head's shapes, the weights, the common base model."""

from collections import Counter
from collections.abc import Mapping
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
    wrong_base: dict[str, str]
    """By site with another base model: the reason why it takes no part, and what to do."""


def facts_of(profiles: Mapping[str, SiteProfile], task: TaskSpec) -> RunFacts:
    """Determine the common base (that of most sites; in a tie the smallest fingerprint) and the facts from its sites' profiles.

    Raises:
        ValueError: there is no profile.
    """
    if not profiles:
        raise ValueError("no site was profiled: at least one profile is needed to know the base model")
    fingerprint = _most_common(profiles)
    agreeing = [profiles[name] for name in sorted(profiles) if profiles[name].fingerprint == fingerprint]
    labels = _labels(agreeing, task)
    base = agreeing[0].base
    return RunFacts(
        labels=labels,
        head=head_shapes(base.head, len(labels)),
        weights={weight.name: (weight.d_out, weight.d_in) for weight in base.weights},
        fingerprint=fingerprint,
        wrong_base={
            name: _wrong_base_reason(profile.fingerprint, fingerprint)
            for name, profile in sorted(profiles.items())
            if profile.fingerprint != fingerprint
        },
    )


def _most_common(profiles: Mapping[str, SiteProfile]) -> str:
    counts = Counter(profile.fingerprint for profile in profiles.values())
    return min(counts, key=lambda fingerprint: (-counts[fingerprint], fingerprint))


def _labels(agreeing: list[SiteProfile], task: TaskSpec) -> tuple[str, ...]:
    if not isinstance(task, SequenceClassificationTask):
        return ()
    return task.labels or tuple(sorted({label for profile in agreeing for label in profile.labels}))


def _wrong_base_reason(found: str, common: str) -> str:
    return (
        f"WrongBase: its base model has fingerprint {found[:_SHOWN_DIGITS]}…, but most sites have {common[:_SHOWN_DIGITS]}…:"
        " give it the same model files"
    )
