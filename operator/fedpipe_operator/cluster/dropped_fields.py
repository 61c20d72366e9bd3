"""Fields of a status that the API server drops, since its CRDs are older than the operator.

It answers such a write with success, and what is read back lacks the fields. Compared with what the operator would write, the status is
then never up to date: without this, every reconcile would write it again.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Path = tuple[str, ...]
"""From the status; an item of a list is `*`."""
Key = tuple[str, str, str]
"""Kind, namespace and name of an object."""

_ITEM: Final = "*"
_FORGET_SECONDS: Final = 600.0
"""After so long a write is tried again, in case the CRDs were upgraded and the operator was not restarted."""


def dropped(sent: Any, kept: Any, at: Path = ()) -> frozenset[Path]:  # noqa: ANN401 -- any JSON
    """Where `kept` lacks a field that `sent` has."""
    if isinstance(sent, Mapping) and isinstance(kept, Mapping):
        missing = frozenset((*at, name) for name in sent if name not in kept)
        return missing.union(*(dropped(sent[name], kept[name], (*at, name)) for name in sent if name in kept))
    if isinstance(sent, list) and isinstance(kept, list):
        return frozenset().union(*(dropped(one, other, (*at, _ITEM)) for one, other in zip(sent, kept, strict=False)))
    return frozenset()


def without(value: Any, paths: frozenset[Path], at: Path = ()) -> Any:  # noqa: ANN401 -- any JSON
    """The value without the fields at these paths."""
    if isinstance(value, Mapping):
        return {name: without(one, paths, (*at, name)) for name, one in value.items() if (*at, name) not in paths}
    return [without(one, paths, (*at, _ITEM)) for one in value] if isinstance(value, list) else value


@dataclass
class DroppedFields:
    """What the API server dropped of each object's status at the last write. Thread-safe."""

    clock: Callable[[], float]
    _known: dict[Key, tuple[frozenset[Path], float]] = field(default_factory=dict)
    _reported: set[Key] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def adds_nothing(self, key: Key, sent: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
        """Whether a write would change nothing, since all that is new would be dropped again."""
        with self._lock:
            paths, found_at = self._known.get(key, (frozenset(), 0.0))
        return bool(paths) and self.clock() < found_at + _FORGET_SECONDS and without(sent, paths) == without(before, paths)

    def written(self, key: Key, sent: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
        """A write was answered; the fields that were dropped, such as `status.progress`, once for each object."""
        paths = dropped(sent, kept)
        with self._lock:
            self._known.pop(key, None)
            if not paths:
                return []
            self._known[key] = paths, self.clock()
            if key in self._reported:
                return []
            self._reported.add(key)
        return sorted({".".join(("status", *(part for part in path if part != _ITEM))) for path in paths})

    def forget(self, key: Key) -> None:
        """The object is gone."""
        with self._lock:
            self._known.pop(key, None)
            self._reported.discard(key)
