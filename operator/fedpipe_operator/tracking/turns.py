"""When a run's trackers are written, and what its condition says of it. Pure.

They are written again whenever a round is finished, the run ends or `spec.tracking` changes. A failure is retried after a pause that
doubles, for about a day, and at once for something new; no round waits for it.
"""

from dataclasses import dataclass, replace
from typing import Final

from fedpipe_operator.api import TRACKED, ConditionStatus, FederatedFineTune, Reason
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.rounds.conditions import Observation
from fedpipe_operator.tracking.content import end_of

_FIRST_PAUSE: Final = 10.0
_LONGEST_PAUSE: Final = 600.0
_MOST_FAILURES: Final = 150
"""In a row, after which a version is given up: a day of pauses."""
_PENDING: Final = Observation(TRACKED, None, Reason.PENDING)


@dataclass(frozen=True)
class Turn:
    """What is known of the trackers of one run."""

    version: str = ""
    """The one that was written, or tried, last."""
    is_written: bool = False
    failures: int = 0
    """In a row."""
    due: float = 0.0
    """Clock seconds: when a failure is tried again."""
    observation: Observation = _PENDING

    def is_due(self, version: str, now: float) -> bool:
        """Whether this version should be written now."""
        return self.version != version or (not self.is_settled(version) and now >= self.due)

    def is_settled(self, version: str) -> bool:
        """Whether nothing more will be done for this version."""
        return self.version == version and (self.is_written or self.failures > _MOST_FAILURES)

    def written(self, version: str, where: str, *, is_over: bool) -> "Turn":
        """After a success. `where` is what the trackers say; empty: there was nothing to write yet."""
        reason = Reason.TRACKERS_COMPLETE if is_over else Reason.TRACKERS_WRITTEN
        return Turn(version, is_written=True, observation=Observation(TRACKED, True, reason, where) if where else _PENDING)

    def failed(self, version: str, error: FedPipeError, now: float) -> "Turn":
        """After a failure. One of another version is retried as soon: the tracker is the same."""
        failures = self.failures + 1
        pause = min(_FIRST_PAUSE * 2.0 ** min(failures - 1, 10), _LONGEST_PAUSE)
        observation = Observation(TRACKED, False, error.reason, error.message)
        return replace(self, version=version, is_written=False, failures=failures, due=now + pause, observation=observation)


def version_of(resource: FederatedFineTune) -> str:
    """What the trackers of a run should have: it changes with the first plan, with each round, at the end, and with `spec.tracking`.

    Empty: there is nothing to write, or no tracker.
    """
    spec, status = resource.spec.tracking, resource.status
    if (spec.mlflow is None and not spec.tensorboard) or not status.plans:
        return ""
    base = status.metric is not None
    last = max((one.round for one in status.history), default=0)
    return f"{last} {base} {end_of(status.conditions)} {spec.model_dump_json()}"


def observed_before(resource: FederatedFineTune) -> Observation:
    """What the status says of the trackers, which a restarted operator repeats until it knows more."""
    found = next((one for one in resource.status.conditions if one.type == TRACKED), None)
    if found is None:
        return _PENDING
    is_true = None if found.status is ConditionStatus.UNKNOWN else found.status is ConditionStatus.TRUE
    return Observation(TRACKED, is_true, found.reason, found.message)


def is_complete(resource: FederatedFineTune) -> bool:
    """Whether the status says that the trackers have all of the run, for this generation of its spec: an operator may have restarted."""
    found = next((one for one in resource.status.conditions if one.type == TRACKED), None)
    return (
        found is not None
        and found.status is ConditionStatus.TRUE
        and found.reason == Reason.TRACKERS_COMPLETE
        and found.observed_generation == resource.metadata.generation
    )
