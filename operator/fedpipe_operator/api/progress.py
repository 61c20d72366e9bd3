"""How far a run is: `status.progress`."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from fedpipe_operator.api.meta import ApiModel


class Stage(StrEnum):
    """What a run is doing. Where a condition's reason says the same, it is the same word."""

    WAITING = "Waiting"
    """It waits for sites."""
    PROFILING = "Profiling"
    """Sites are being profiled."""
    PLANNING = "Planning"
    """The round is being planned."""
    TRAINING = "Training"
    """Sites evaluate the last round's global adapter, then train the round."""
    AGGREGATING = "Aggregating"
    """The round's updates are being aggregated."""
    EVALUATING = "Evaluating"
    """Sites evaluate the last global adapter of the run."""
    EXPORTING = "Exporting"
    """The results are being exported."""
    SUSPENDED = "Suspended"
    """`spec.suspend` is true."""
    COMPLETE = "Complete"
    """The run is complete."""
    FAILED = "Failed"
    """The run has failed."""


class ProgressStatus(ApiModel):
    """How far the run is. Written at most once a minute where nothing else of the status changes."""

    stage: Stage
    percentage: Annotated[int, Field(ge=0, le=100)]
    """Of the whole run, rounded down; 100 when it is complete and not before. A run that ends early reaches it by a jump."""
    estimated_remaining_seconds: Annotated[int, Field(ge=0, le=10**9)] | None = None
    """From the seconds of its rounds so far or, before one is committed, from the plan's forecast; left out before there is a plan."""
    sites_done: Annotated[int, Field(ge=0)]
    """Sites that are done with the stage: profiled, trained or evaluated; in other stages, the updates that the round received."""
    sites_total: Annotated[int, Field(ge=0)]
    """Sites that the stage waits for or, in other stages, that the round asked for an update."""
    last_updated_time: Annotated[str, Field(max_length=32)] = ""
    """When this was estimated, in RFC 3339 format."""
