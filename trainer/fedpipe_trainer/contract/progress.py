"""What a trainer reports while it works: lines on its standard output and, where its task has an upload for it, an object in the store."""

from typing import Annotated, Final, Literal

from pydantic import Field

from fedpipe_trainer.contract.base import SCHEMA_VERSION, Wire
from fedpipe_trainer.contract.result import Loss, Rate
from fedpipe_trainer.contract.task import RunRef

PROGRESS_SECONDS: Final = 15.0
"""A trainer writes its progress to the store no oftener, and the operator reads that of a job no oftener."""
MAX_PROGRESS_BYTES: Final = 4096

Phase = Literal["load", "profile", "train", "evaluate", "export", "transfer"]
Steps = Annotated[int, Field(ge=0, le=10**9)]


class Progress(Wire):
    """One line of progress on standard output. A line that does not parse as this is an ordinary log line."""

    phase: Phase
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None


class TaskProgress(Wire):
    """The progress of one task as its trainer writes it to the store, over and over under the same key."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: RunRef
    site: str
    round: int
    attempt: int
    phase: Phase
    step: Steps = 0
    steps: Steps = 0
    """Of the phase; 0: it is not counted in steps."""
    loss: Loss | None = None
    """Of the last step; None where the site's policy hides it (`trainingLosses: Mean`), and in phases without one."""
    tokens_per_second: Rate | None = None
