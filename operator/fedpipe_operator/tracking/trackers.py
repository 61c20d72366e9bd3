"""The threads that write trackers: no reconcile waits for one, and a slow tracker delays those of its own namespace.

Every call in such a thread is bounded (`store.connections`), and so is the thread. It dies with the operator, and another one goes on.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fedpipe_operator import logs
from fedpipe_operator.errors import OPERATOR_FAULT, FedPipeError, UserError
from fedpipe_operator.fairness import DueKey, Load, Running, next_keys
from fedpipe_operator.rounds import Run, is_over
from fedpipe_operator.rounds.conditions import Observation
from fedpipe_operator.tracking.turns import Turn, is_complete, observed_before, version_of
from fedpipe_operator.tracking.write import Work, write_trackers

_LOG: Final = logging.getLogger(__name__)
_MAX_CONCURRENT: Final = 4
_HELD_SECONDS: Final = 20.0
"""After which a thread, whose tracker or store may be slow, no longer delays those of other namespaces. A run that is over and waits for a
thread is looked at so often: there may be thousands."""
_MAX_THREADS: Final = 16
POLL_SECONDS: Final = 2.0
"""A run that is over, or is being deleted, is looked at so often while a thread writes its trackers."""
_MESSAGE_MAX: Final = 500


class Tracked(NamedTuple):
    """What is known of a run's trackers."""

    observation: Observation | None
    """For its condition; None: it has no trackers."""
    requeue_at: float | None = None
    """Clock seconds; None: nothing more is to be done for what the run's status says now."""


class _Waiting(NamedTuple):
    namespace: str
    since: float
    version: str
    run: Run
    prepare: Callable[[], Work]


@dataclass
class Trackers:
    """The writing of all runs' trackers, by the uid of the run. Thread-safe."""

    clock: Callable[[], float] = time.time
    write: Callable[[Work], str] = write_trackers
    on_end: Callable[[str], None] = lambda _uid: None
    """Called with the uid of the run whose trackers were written, or could not be."""
    believes_status: bool = True
    """Whether a run that is over is left alone if its status says that its trackers have it: a restarted operator finds many such."""
    _turns: dict[str, Turn] = field(default_factory=dict)
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _running: dict[str, _Waiting] = field(default_factory=dict)
    _last_turns: dict[Hashable, float] = field(default_factory=dict)
    """By namespace."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def sync(self, run: Run, prepare: Callable[[], Work]) -> Tracked:
        """Have the run's trackers written if its status says more than they have; what is known of them by now.

        Args:
            run: with its newest status.
            prepare: what is needed for it, called in the thread: it may call the API server. Raises `FedPipeError`.
        """
        resource, version, now = run.resource, version_of(run.resource), self.clock()
        uid = resource.metadata.uid
        if not version:
            return Tracked(observed_before(resource) if _has_trackers(run) else None)
        if self.believes_status and is_over(resource) and uid not in self._turns and is_complete(resource):
            return Tracked(None)
        with self._lock:
            turn = self._turns.setdefault(uid, Turn(observation=observed_before(resource)))
            is_under_way = uid in self._waiting or uid in self._running
            if not is_under_way and turn.is_due(version, now):
                self._waiting[uid] = _Waiting(resource.metadata.namespace, now, version, run, prepare)
                is_under_way = True
            self._start_next()
            pause = POLL_SECONDS if uid in self._running else _HELD_SECONDS
        if is_under_way:
            return Tracked(turn.observation, now + pause)
        return Tracked(turn.observation, None if turn.is_settled(version) else turn.due)

    def is_active(self, uid: str) -> bool:
        """Whether a thread is at work for this run, which is being deleted: none begins any more."""
        with self._lock:
            self._waiting.pop(uid, None)
            return uid in self._running

    def forget(self, uid: str) -> None:
        """The run is gone. A thread that is at work for it ends by itself."""
        with self._lock:
            self._turns.pop(uid, None)
            self._waiting.pop(uid, None)

    def _start_next(self) -> None:
        """Give threads to those that come next. The caller holds the lock."""
        now = self.clock()
        due = [DueKey(one.since, uid, one.namespace) for uid, one in self._waiting.items()]
        running = [Running(one.namespace, one.since) for one in self._running.values()]
        groups = frozenset(one.namespace for one in (*self._waiting.values(), *self._running.values()))
        chosen = next_keys(due, Load(running, groups, self._last_turns), limit=_MAX_CONCURRENT, held_seconds=_HELD_SECONDS, now=now)
        for key in chosen[: _MAX_THREADS - len(running)]:
            one = self._running[key.key] = self._waiting.pop(key.key)._replace(since=now)
            self._last_turns[one.namespace] = now
            threading.Thread(target=self._perform, args=(key.key, one), name="tracker", daemon=True).start()

    def _perform(self, uid: str, one: _Waiting) -> None:
        with logs.context(namespace=one.namespace, run=one.run.name, uid=uid):
            result = self._written(one)
        with self._lock:
            self._running.pop(uid, None)
            if (turn := self._turns.get(uid)) is not None:
                self._turns[uid] = (
                    turn.failed(one.version, result, self.clock())
                    if isinstance(result, FedPipeError)
                    else turn.written(one.version, result, is_over=is_over(one.run.resource))
                )
            self._start_next()
        self.on_end(uid)

    def _written(self, one: _Waiting) -> str | FedPipeError:
        """Where the trackers are, in words; or why they could not be written."""
        try:
            return self.write(one.prepare())
        except FedPipeError as error:
            _LOG.warning("trackers are not written: %s", error)
            return error
        except Exception as fault:  # noqa: BLE001 -- a fault here must cost the trackers only, and is shown in the run's status
            _LOG.exception("trackers are not written")
            what = f"internal error of the operator, which retries; report it with the operator's log: {type(fault).__name__}: {fault}"
            return UserError(OPERATOR_FAULT, what[:_MESSAGE_MAX])


def _has_trackers(run: Run) -> bool:
    spec = run.spec.tracking
    return spec.mlflow is not None or spec.tensorboard
