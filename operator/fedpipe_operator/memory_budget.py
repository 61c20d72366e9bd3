"""How much of the operator's memory the objects of all runs' stores may take, shared among the namespaces.

Who may write into a bucket chooses how much there is to read. A namespace may hold as much as stays free beside it: one alone half of
the whole, n that all want more one part of n + 1 each, so that there is always room for one that comes later (the dynamic thresholds of
Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998, with α = 1).
"""

import sys
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Final

from pydantic import BaseModel

from fedpipe_operator.errors import UserError
from fedpipe_operator.formatting import bytes_text

_OF_ITEM: Final = 40
"""Bytes that a value takes in memory beside its text, measured with plans, commits and results: as an item of a list, …"""
_OF_FIELD: Final = 70
"""… so much more if it has a name …"""
_OF_OBJECT: Final = 100
"""… or is an object."""
SITE_BYTES: Final = 32 * 2**20
"""What the results of one site may take of each run that it is in, beside twice what the largest of them may: many times what those of a
profile of 4,000 weights, an update and an evaluation take."""


def bytes_in_memory(data: bytes) -> int:
    """What a JSON object takes once it is parsed, estimated before it is; a fifth too much rather than too little."""
    items, names, objects = data.count(b",") + data.count(b"["), data.count(b":"), data.count(b"{")
    return len(data) + _OF_ITEM * items + _OF_FIELD * names + _OF_OBJECT * objects


def bytes_of(value: object) -> int:
    """What a value takes in memory, of those that records and their summaries consist of."""
    size = sys.getsizeof(value, 0)
    if isinstance(value, BaseModel):
        return size + bytes_of(value.__dict__)
    if is_dataclass(value):
        return size + sum(bytes_of(getattr(value, one.name)) for one in fields(value))
    if isinstance(value, Mapping):
        return size + sum(bytes_of(name) + bytes_of(one) for name, one in value.items())
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return size + sum(map(bytes_of, value))
    return size


@dataclass
class MemoryBudget:
    """What all runs hold, by namespace. Thread-safe."""

    total: int = sys.maxsize
    """Bytes."""
    _held: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def change(self, namespace: str, by: int) -> None:
        """Have a namespace hold so many bytes more, or fewer.

        Raises:
            UserError: `RecordsTooLarge`, it would hold more than its share; it holds what it held before.
        """
        with self._lock:
            after, free = self._held[namespace] + by, self.total - self._held.total() - by
            if by > 0 and free < after:
                raise _too_large_error(after, max(0, (after + free) // 2))
            self._held[namespace] = after
            self._held += Counter()  # forgets the namespaces that hold nothing

    def held(self, namespace: str) -> int:
        """Bytes."""
        with self._lock:
            return self._held[namespace]


def _too_large_error(found: int, share: int) -> UserError:
    seen = f"the objects of this namespace's runs take {bytes_text(found)} of the operator's memory, and its share is {bytes_text(share)}"
    advice = "have fewer runs at a time, or fewer sites or weights in each, or give the operator more memory (resources.limits.memory)"
    return UserError("RecordsTooLarge", f"{seen}: {advice}; look for objects in the run's folder that are not the run's")


@dataclass
class Holding:
    """What one run holds of its namespace's share, by key and by the site that wrote it. Thread-safe."""

    budget: MemoryBudget = field(default_factory=MemoryBudget)
    """By default without a limit, as on one machine."""
    namespace: str = ""
    _sizes: dict[str, int] = field(default_factory=dict)
    _of_sites: dict[str, set[str]] = field(default_factory=dict)
    """Keys by site."""
    _is_closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def hold(self, key: str, size: int, site: str = "") -> None:
        """Hold so many bytes for this key from now on. Raises what `MemoryBudget.change` does."""
        with self._lock:
            if self._is_closed:  # the run is gone, and its last reconcile ends
                return
            self.budget.change(self.namespace, size - self._sizes.get(key, 0))
            self._sizes[key] = size
            if site:
                self._of_sites.setdefault(site, set()).add(key)

    def of_site(self, site: str) -> int:
        """Bytes of what this site wrote."""
        with self._lock:
            return sum(self._sizes[key] for key in self._of_sites.get(site, ()))

    def keep(self, keys: Collection[str]) -> None:
        """Hold nothing for other keys any more."""
        with self._lock:
            self._keep(set(keys))

    def close(self) -> None:
        """Hold nothing, whatever comes."""
        with self._lock:
            self._is_closed = True
            self._keep(set())

    def _keep(self, keys: set[str]) -> None:
        dropped = self._sizes.keys() - keys
        self.budget.change(self.namespace, -sum(self._sizes.pop(key) for key in dropped))
        self._of_sites = {site: rest for site, of_site in self._of_sites.items() if (rest := of_site - dropped)}
