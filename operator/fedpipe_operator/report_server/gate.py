"""Whether the bearer of a token may read a run's report. The API server is asked, at most every few seconds for the same question."""

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from fedpipe_operator.cluster.access import identify, may_get_run
from fedpipe_operator.cluster.api import Api

_VALID_SECONDS: Final = 10.0
"""So long an answer is kept: a right that is taken away, or a token that is revoked, counts no longer than that."""
_KEPT: Final = 256


class Access(Enum):
    """What a caller may do."""

    UNKNOWN = auto()
    """The token is no user's."""
    FORBIDDEN = auto()
    ALLOWED = auto()


@dataclass
class Gate:
    """Asks the API server, and keeps a few answers. Thread-safe."""

    api: Api
    """That changes nothing: see `for_reviews`."""
    audience: str
    """For which a token must have been made; empty: for the API server."""
    clock: Callable[[], float] = time.monotonic
    _kept: OrderedDict[bytes, tuple[float, Access]] = field(default_factory=OrderedDict)
    """By the hash of the question: no token stays in memory."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def access(self, token: str, namespace: str, name: str) -> Access:
        """What the bearer of this token may do with this run, whether or not it exists.

        Raises:
            FedPipeError: the API server does not answer, or the operator may not ask.
        """
        key = hashlib.sha256(repr((token, namespace, name)).encode()).digest()
        with self._lock:
            asked_at, known = self._kept.get(key, (0.0, None))
        if known is not None and self.clock() - asked_at < _VALID_SECONDS:
            return known
        now, found = self.clock(), self._ask(token, namespace, name)
        with self._lock:
            self._kept[key] = (now, found)
            self._kept.move_to_end(key)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def _ask(self, token: str, namespace: str, name: str) -> Access:
        user = identify(self.api, token, self.audience)
        if user is None:
            return Access.UNKNOWN
        return Access.ALLOWED if may_get_run(self.api, user, namespace, name) else Access.FORBIDDEN
