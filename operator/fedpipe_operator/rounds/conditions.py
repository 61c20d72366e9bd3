"""Conditions as the Kubernetes API conventions define them: written anew by each reconcile, with the time of the last transition kept."""

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, NamedTuple

from fedpipe_operator.api import Condition, ConditionStatus, Reason

_MESSAGE_MAX: Final = 4096


class Observation(NamedTuple):
    """What a reconcile observed of one condition."""

    type: str
    is_true: bool | None
    """None: not determined yet; the condition is Unknown."""
    reason: str
    message: str = ""


def conditions_of(
    observations: Iterable[Observation], before: Iterable[Condition], *, kinds: type[StrEnum], generation: int, now: float
) -> tuple[Condition, ...]:
    """A condition of each of these kinds, in their order.

    A condition that was not observed this time is kept from `before` (the status so far); one that never was is Unknown.
    """
    known = {condition.type: condition for condition in before}
    observed = {str(kind): Observation(kind, None, Reason.PENDING) for kind in kinds if kind not in known}
    observed |= {observation.type: observation for observation in observations}
    conditions = known | {kind: _condition(one, known.get(kind), generation, now) for kind, one in observed.items()}
    order = {str(kind): index for index, kind in enumerate(kinds)}
    return tuple(sorted(conditions.values(), key=lambda condition: order.get(condition.type, len(order))))


def _condition(observation: Observation, before: Condition | None, generation: int, now: float) -> Condition:
    status = _status(observation)
    is_same = before is not None and before.status is status
    return Condition(
        type=observation.type,
        status=status,
        reason=observation.reason,
        message=observation.message[:_MESSAGE_MAX],
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and is_same else rfc3339(now),
    )


def _status(observation: Observation) -> ConditionStatus:
    if observation.is_true is None:
        return ConditionStatus.UNKNOWN
    return ConditionStatus.TRUE if observation.is_true else ConditionStatus.FALSE


def rfc3339(now: float) -> str:
    """A time in Unix seconds as Kubernetes writes it."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
