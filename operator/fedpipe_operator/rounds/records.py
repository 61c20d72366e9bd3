"""What the operator itself writes into the store: a round's plan, verdicts on updates, the commit, the evaluation.

All are small JSON objects, written once and never changed; the run's state is what they say.
"""

from typing import Annotated

from pydantic import Field

from fedpipe_trainer.contract import Artifact, Plan, Wire


class RoundPlan(Wire):
    """The start of a round: who takes part, with which plan, and what an update must look like."""

    round: Annotated[int, Field(ge=1)]
    started_at: float
    """Unix seconds: the round's deadline counts from here, also after a restart of the operator."""
    fingerprint: str
    """The base model every update must be made on."""
    labels: tuple[str, ...] = ()
    weights: dict[str, tuple[int, int]]
    """(d_out, d_in) of every weight that may get an adapter."""
    head: dict[str, tuple[int, ...]] = {}
    """Shape of every tensor that is trained and averaged whole, by its key in the adapter file."""
    plans: dict[str, Plan]
    """By site, for the sites that can take part."""
    selected: tuple[str, ...]
    """The round's sites: a choice out of `plans`."""
    evaluators: tuple[str, ...]
    """The sites that measure the round's global adapter."""
    needed: Annotated[int, Field(ge=1)]
    """Updates the round cannot do without (the quorum)."""
    excluded: dict[str, str] = {}
    """Sites left out, with the reason."""


class UpdateRef(Wire):
    """One site's update, as the aggregation is told of it."""

    site: str
    attempt: int


class Verdict(Wire):
    """What the gate said of one update: accepted, or refused for a named reason."""

    accepted: bool
    reason: str = ""
    """One CamelCase word when refused: HashMismatch, UnknownKey, MissingKey, WrongShape, NotFinite, WrongBase, …"""
    message: str = ""


class Contribution(Wire):
    """One update that went into a round."""

    site: str
    attempt: int
    sha256: str
    samples: int
    share: float
    """Its weight p_k in the average over the round's updates."""


class RoundCommit(Wire):
    """The commit of a round, written after the global adapter. A round is done when, and only when, this exists."""

    round: int
    method: str
    adapter: Artifact
    ranks: dict[str, int]
    """Rank of the global adapter by weight."""
    head: dict[str, tuple[int, ...]] = {}
    contributions: tuple[Contribution, ...]
    refused: dict[str, Verdict] = {}
    """By site."""
    absent: dict[str, str] = {}
    """Why no update came, by site."""
    truncated_energy: dict[str, float] = {}
    """By weight: the share of the update's squared singular values that the cut to the global rank lost."""
    seconds: float = 0.0
    bytes_read: int = 0


class SiteEvaluation(Wire):
    """One site's part of an evaluation."""

    samples: int
    targets: int
    loss: float | None = None
    metrics: dict[str, float] = {}


class RoundEvaluation(Wire):
    """The federated evaluation of a global adapter: the sites' results weighted by their samples. Round 0 is the base."""

    round: int
    finished_at: float
    loss: float | None = None
    metrics: dict[str, float] = {}
    sites: dict[str, SiteEvaluation] = {}
    missing: dict[str, str] = {}
    """Sites that gave no result, with the reason."""


class Comparison(Wire):
    """What the federation was worth: the same evaluation of the base, of each site alone with the same budget, of the federated adapter."""

    base: RoundEvaluation
    alone: dict[str, RoundEvaluation]
    """By the site that trained alone."""
    federated: RoundEvaluation
