"""Which work is done next, so that no group of it (what belongs to a namespace) delays the others. Pure.

What the work of one group can hold up is a thread or a process: its author chose the store that does not answer. Three rules follow:

* No group has more than half of the places, unless it is the only one: the others find a free one at once.
* Work that has gone on for `held_seconds` counts for its group only. However many groups are held up, the rest go on with all places.
* Of the groups with work to do, the one with the fewest places comes first, then the one that waited longest for its turn.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class DueKey(NamedTuple, Generic[Key]):
    """Work that waits for a place."""

    due: float
    key: Key
    group: Hashable


class Running(NamedTuple):
    """Work that is under way."""

    group: Hashable
    started: float


@dataclass(frozen=True)
class Load:
    """What is under way, and who waits."""

    running: Sequence[Running]
    groups: frozenset[Hashable]
    """All with work, due or not."""
    last_turns: Mapping[Hashable, float]
    """When work of each group last began; a group that had none is missing."""


def next_keys(due: Sequence[DueKey[Key]], load: Load, *, limit: int, held_seconds: float, now: float) -> list[DueKey[Key]]:
    """The due work that begins now, in the order of its turns.

    Args:
        due: what waits.
        load: as it is before them.
        limit: places, for what is not held up.
        held_seconds: after which work counts as held up.
        now: in the seconds of all other times.
    """
    free = limit - sum(one.started + held_seconds > now for one in load.running)
    share = limit if len(load.groups) <= 1 else max(1, limit // 2)
    running, turns = Counter(one.group for one in load.running), dict(load.last_turns)
    waiting, chosen = sorted(due, key=lambda one: one.due), list[DueKey[Key]]()
    while len(chosen) < free:
        candidates = [one for one in waiting if running[one.group] < share]
        if not candidates:
            break
        best = min(candidates, key=lambda one: (running[one.group], turns.get(one.group, float("-inf")), one.due))
        waiting.remove(best)
        chosen.append(best)
        running[best.group] += 1
        turns[best.group] = now
    return chosen


def next_release(running: Sequence[Running], *, held_seconds: float, now: float) -> float | None:
    """When the next work that is under way will count for its group only; None if all does."""
    return min((at for one in running if (at := one.started + held_seconds) > now), default=None)
