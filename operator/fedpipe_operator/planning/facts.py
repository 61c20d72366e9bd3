"""What a run's rounds must know that only the sites' profiles say: labels, the head's shapes, the weights, the common base."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fedpipe_operator.planning.sizes import head_shapes
from fedpipe_operator.sites.profile import SiteProfile
from fedpipe_trainer.contract import Objective, SequenceClassification

_SHOWN = 12
"""Digits of a fingerprint that a message shows."""


@dataclass(frozen=True)
class RunFacts:
    """The fields of a `records.RoundPlan` that come from profiles."""

    labels: tuple[str, ...]
    """In the order of the head's outputs; empty when nothing is classified."""
    head: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[int, int]]
    """(d_out, d_in) of every weight that may get an adapter."""
    fingerprint: str
    """The base that most sites have."""
    disagreeing: dict[str, str]
    """Sites with another base, and what to do about it; they take no part."""


def facts_of(profiles: Mapping[str, SiteProfile], objective: Objective) -> RunFacts:
    """Settle on the common base (most sites, of equals the smallest fingerprint) and what follows from its sites' profiles.

    Raises:
        ValueError: there is no profile at all.
    """
    if not profiles:
        raise ValueError("no site was profiled, so nothing is known of the base model: at least one profile is needed")
    fingerprint = _most_common(profiles)
    agreeing = [profiles[name] for name in sorted(profiles) if profiles[name].fingerprint == fingerprint]
    labels = _labels(agreeing, objective)
    base = agreeing[0].base
    return RunFacts(
        labels=labels,
        head=head_shapes(base.head, len(labels)),
        weights={weight.name: (weight.d_out, weight.d_in) for weight in base.weights},
        fingerprint=fingerprint,
        disagreeing={
            name: _wrong_base(profile.fingerprint, fingerprint)
            for name, profile in sorted(profiles.items())
            if profile.fingerprint != fingerprint
        },
    )


def _most_common(profiles: Mapping[str, SiteProfile]) -> str:
    counts = Counter(profile.fingerprint for profile in profiles.values())
    return min(counts, key=lambda fingerprint: (-counts[fingerprint], fingerprint))


def _labels(agreeing: list[SiteProfile], objective: Objective) -> tuple[str, ...]:
    if not isinstance(objective, SequenceClassification):
        return ()
    return objective.labels or tuple(sorted({label for profile in agreeing for label in profile.labels}))


def _wrong_base(found: str, wanted: str) -> str:
    return f"WrongBase: its base model is {found[:_SHOWN]}…, most sites have {wanted[:_SHOWN]}…: give it the same model files"
