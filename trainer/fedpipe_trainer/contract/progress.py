"""What a trainer says of itself while it works: one JSON line on standard output each."""

from typing import Literal

from fedpipe_trainer.contract.base import Wire


class Progress(Wire):
    """One line of progress. Lines that do not parse as this are ordinary log lines."""

    phase: Literal["load", "profile", "train", "evaluate", "export", "transfer"]
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None


class Ended(Wire):
    """The line a serving trainer writes when one of its tasks is over: which task file, and its exit status."""

    ended: str
    exit_code: int
