"""The outcome of planning."""

from dataclasses import dataclass

from fedpipe_trainer.contract import Plan


@dataclass(frozen=True)
class Plans:
    """A plan for every site that can take part, and a reason for every site that cannot; both by site."""

    plans: dict[str, Plan]
    excluded: dict[str, str]
