"""Conditions as the Kubernetes API conventions want them: made anew at each look, the time of a transition kept until the next."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from fedpipe_operator.api import Condition, ConditionStatus

_MESSAGE_MAX: Final = 4096


class Observation(NamedTuple):
    """One observation."""

    type: str
    is_true: bool
    reason: str
    message: str = ""


def conditions_of(told: Iterable[Observation], before: Iterable[Condition], *, generation: int, now: float) -> tuple[Condition, ...]:
    """These observations as conditions; `before` are those of the status so far, and what is not told of is kept from it."""
    known = {condition.type: condition for condition in before}
    made = {one.type: _condition(one, known.get(one.type), generation, now) for one in told}
    return tuple((known | made).values())


def _condition(told: Observation, before: Condition | None, generation: int, now: float) -> Condition:
    status = ConditionStatus.TRUE if told.is_true else ConditionStatus.FALSE
    unchanged = before is not None and before.status is status
    return Condition(
        type=told.type,
        status=status,
        reason=told.reason,
        message=told.message[:_MESSAGE_MAX],
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and unchanged else _rfc3339(now),
    )


def _rfc3339(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
