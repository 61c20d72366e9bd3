"""Which replica of the operator may act: a Lease of `coordination.k8s.io/v1`, read as client-go's leader election reads it. Pure.

Clocks of two machines differ, so no time that another process wrote is compared with our own. Every process counts on its own clock:

* The leader counts from the moment before it sent the last renewal that succeeded, and acts for `HOLD_SECONDS`.
* A candidate counts from the moment at which it first saw the Lease in its present form, and takes over after the Lease's duration.

It saw that form after it was written, which was after the leader's count began: so the leader has stopped before the candidate takes over,
as long as no clock is faster than the other by the ratio of the two times. The API server admits one of two writes to the same version.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Final, NamedTuple

DURATION_SECONDS: Final = 12.0
"""A candidate takes over when the Lease has not changed for so long: with two polls, within 14 s of the leader's end."""
HOLD_SECONDS: Final = 10.0
"""The leader acts for so long after a renewal. The rest is for clocks that differ in speed, and for requests that are on their way."""
RENEW_SECONDS: Final = 3.0
"""Between renewals: two may fail in a row."""
POLL_SECONDS: Final = 1.0
"""Between a candidate's looks at the Lease, and between attempts to renew it after one failed."""
KIND: Final = "Lease"

Plain = dict[str, Any]


class Decision(Enum):
    """What a replica does about the Lease now."""

    ACQUIRE = auto()
    """Write it as ours: it is free, or its holder has not renewed it in time."""
    RENEW = auto()
    """Write it again. After `HOLD_SECONDS`, too: if no other replica took the Lease, none has acted."""
    WAIT = auto()
    LOST = auto()
    """Another replica has it, or somebody deleted it: this process must not act again."""


@dataclass(frozen=True)
class Lease:
    """As much of a Lease as decides."""

    holder: str
    """Name of the pod; empty: released."""
    seconds: float
    """How long it stays the holder's after a renewal."""
    version: str
    """The resource version: it changes with every write."""
    transitions: int = 0
    """How often the holder changed."""


class Seen(NamedTuple):
    """The Lease as this process saw it last."""

    lease: Lease | None
    """None: there is none."""
    since: float
    """Seconds of our own clock at which we first saw it so."""
    at: float
    """Seconds of our own clock at which we saw it last."""


def look(before: Seen | None, lease: Lease | None, now: float) -> Seen:
    """What is known after the Lease was read."""
    return Seen(lease, before.since if before is not None and before.lease == lease else now, now)


def decide(seen: Seen, held_until: float | None, now: float, identity: str) -> Decision:
    """What to do now.

    Args:
        seen: the Lease, as we saw it last.
        held_until: until when we may act; None: we have not acquired it.
        now: seconds of our own clock, which never jumps.
        identity: who we are.
    """
    if held_until is not None:
        if seen.lease is None or seen.lease.holder != identity:
            return Decision.LOST
        return Decision.RENEW if now >= held_until - HOLD_SECONDS + RENEW_SECONDS else Decision.WAIT
    if seen.lease is None or seen.lease.holder in ("", identity):  # ours: of an earlier process of this pod, which has ended
        return Decision.ACQUIRE
    return Decision.ACQUIRE if now >= seen.since + seen.lease.seconds else Decision.WAIT


def lease_of(body: Mapping[str, Any]) -> Lease:
    """The Lease in an object of the API."""
    spec = body.get("spec") or {}
    return Lease(
        holder=spec.get("holderIdentity") or "",
        seconds=float(spec.get("leaseDurationSeconds") or DURATION_SECONDS),
        version=body["metadata"]["resourceVersion"],
        transitions=spec.get("leaseTransitions") or 0,
    )


def new_body(name: str, identity: str, wall: float) -> Plain:
    """A Lease that does not exist yet, as ours.

    Args:
        name: of the Lease.
        identity: who we are.
        wall: Unix seconds, for people who read the Lease.
    """
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": KIND,
        "metadata": {"name": name},
        "spec": _held(identity, wall) | {"acquireTime": _micro_time(wall), "leaseTransitions": 0},
    }


def renewal(lease: Lease, identity: str, wall: float) -> Plain:
    """The change that makes this version of the Lease ours, for the first time or again."""
    first: Plain = {} if lease.holder == identity else {"acquireTime": _micro_time(wall), "leaseTransitions": lease.transitions + 1}
    return {"metadata": {"resourceVersion": lease.version}, "spec": _held(identity, wall) | first}


def release(lease: Lease, wall: float) -> Plain:
    """The change that gives this version of the Lease up, so that the next holder need not wait for its end."""
    return {"metadata": {"resourceVersion": lease.version}, "spec": {"holderIdentity": "", "renewTime": _micro_time(wall)}}


def _held(identity: str, wall: float) -> Plain:
    return {"holderIdentity": identity, "leaseDurationSeconds": int(DURATION_SECONDS), "renewTime": _micro_time(wall)}


def _micro_time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
