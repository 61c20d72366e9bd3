"""The elector: a thread that acquires the Lease, renews it, and ends the process when another replica has it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fedpipe_operator.cluster.api import LEASES, Api
from fedpipe_operator.cluster.leadership import Leadership
from fedpipe_operator.cluster.lease import (
    HOLD_SECONDS,
    POLL_SECONDS,
    Decision,
    Lease,
    Seen,
    decide,
    lease_of,
    look,
    new_body,
    release,
    renewal,
)
from fedpipe_operator.errors import FedPipeError

_LOG: Final = logging.getLogger(__name__)
_LAST_CALLS_SECONDS: Final = 5.0
"""How long a replica that stops waits for its calls that are under way; the Lease is not released before they have ended."""


@dataclass
class Elector:
    """Holds the Lease for this process, or waits for it."""

    api: Api
    """With short time limits: a renewal that takes longer than the Lease is none."""
    namespace: str
    name: str
    """Of the Lease."""
    identity: str
    """The pod's name."""
    leadership: Leadership
    on_lost: Callable[[str], None] = lambda _why: None
    """Called once, from the elector's thread. It should end the process."""
    wall: Callable[[], float] = time.time
    seen: Seen | None = None
    """The Lease as the last look or renewal that succeeded found it."""
    problem: str = ""
    """Why the last look or renewal failed; empty if it succeeded."""
    _on_leading: Callable[[], object] = lambda: None
    _on_regained: Callable[[], object] = lambda: None
    _thread: threading.Thread | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self, on_leading: Callable[[], object], on_regained: Callable[[], object]) -> None:
        """Stand for leadership from now on, in a thread of its own: a busy event loop delays no renewal.

        Args:
            on_leading: called once, from that thread.
            on_regained: called from it whenever the Lease is renewed after its time, so that `Leadership.caught_up` is called in the end.
        """
        self._on_leading, self._on_regained = on_leading, on_regained
        self._thread = threading.Thread(target=self._run, name="elector", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Act no more, and release the Lease once nothing that was begun is under way, so that the next replica need not wait."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_LAST_CALLS_SECONDS)
        have_ended, lease = self.leadership.give_up(seconds=_LAST_CALLS_SECONDS), self.seen.lease if self.seen is not None else None
        if not have_ended or lease is None or lease.holder != self.identity:
            return
        try:
            self.api.merge(LEASES, self.namespace, self.name, release(lease, self.wall()))
        except FedPipeError as error:
            _LOG.warning("the Lease %s/%s could not be released and ends by itself: %s", self.namespace, self.name, error)

    def has_ended(self) -> bool:
        """Whether the thread has ended, so that this replica neither stands for leadership nor renews it any more."""
        return self._thread is not None and not self._thread.is_alive() and not self._stopping.is_set()

    def step(self) -> bool:
        """Look at the Lease or renew it; False once another replica has it."""
        try:
            decision = self._decide()
            if decision in (Decision.ACQUIRE, Decision.RENEW):
                self._write()
        except FedPipeError as error:
            self._report(str(error))
            if self.leadership.until is not None:
                self.seen = None  # a renewal without an answer may have been written: look before the next one
            return True
        self.problem = ""
        return decision is not Decision.LOST

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self.step():
                self.leadership.give_up()
                self.on_lost(
                    f"the Lease {self.namespace}/{self.name} has gone to {self._holder() or 'no replica'}, and this replica must not act"
                )
                return
            self._stopping.wait(POLL_SECONDS)

    def _decide(self) -> Decision:
        """What to do. A leader that knows the Lease's version looks only through its next renewal."""
        held_until = self.leadership.until
        if held_until is None or self.seen is None:
            self._look()
        assert self.seen is not None  # noqa: S101 -- it was looked at
        return decide(self.seen, held_until, self.leadership.clock(), self.identity)

    def _report(self, problem: str) -> None:
        """Log a problem when it is new: it is met again every second."""
        if problem != self.problem:
            _LOG.warning("the Lease %s/%s: %s", self.namespace, self.name, problem)
        self.problem = problem

    def _holder(self) -> str:
        return self.seen.lease.holder if self.seen is not None and self.seen.lease is not None else ""

    def _look(self) -> None:
        body, before = self.api.get(LEASES, self.namespace, self.name), self._holder()
        self.seen = look(self.seen, lease_of(body) if body is not None else None, self.leadership.clock())
        if self._holder() not in ("", before, self.identity):
            _LOG.info("standing by: %s holds the Lease %s/%s", self._holder(), self.namespace, self.name)

    def _write(self) -> None:
        """Make the Lease ours, for the first time or again. Only the write of one replica to one version succeeds."""
        assert self.seen is not None  # noqa: S101 -- it was looked at
        asked_at, before = self.leadership.clock(), self.seen.lease
        written = self._write_version(before)
        if written is None:  # another replica created it, or somebody deleted it: the next look tells
            self.seen = None
            return
        is_first = self.leadership.until is None
        self.seen = Seen(lease_of(written), asked_at, self.leadership.clock())
        if self.leadership.extend(asked_at + HOLD_SECONDS):
            _LOG.info("leading again: %s still holds the Lease %s/%s", self.identity, self.namespace, self.name)
            self._on_regained()
        if is_first:
            _LOG.info("leading: %s holds the Lease %s/%s", self.identity, self.namespace, self.name)
            self._on_leading()

    def _write_version(self, before: Lease | None) -> dict[str, object] | None:
        if before is None:
            return self.api.create(LEASES, self.namespace, new_body(self.name, self.identity, self.wall()))
        return self.api.merge(LEASES, self.namespace, self.name, renewal(before, self.identity, self.wall()))
