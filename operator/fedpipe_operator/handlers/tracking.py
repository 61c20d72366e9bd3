"""What the controller remembers of runs between two reconciles: which are active, and which wait for a job slot of a site."""

from dataclasses import dataclass, field

from fedpipe_operator.handlers.enqueue import Key


@dataclass
class ActiveRuns:
    """Keys of the runs that are neither complete nor failed, by uid."""

    _keys: dict[str, Key] = field(default_factory=dict)

    def update(self, uid: str, key: Key, *, is_over: bool) -> bool:
        """Note what a reconcile saw; whether the run has just started or finished."""
        was_active = uid in self._keys
        if is_over:
            self._keys.pop(uid, None)
        else:
            self._keys[uid] = key
        return was_active == is_over

    def key_of(self, uid: str) -> Key | None:
        """The run's key; None if it is not active."""
        return self._keys.get(uid)

    def remove(self, uid: str) -> None:
        """The run's object is gone."""
        self._keys.pop(uid, None)


@dataclass
class WaitingRuns:
    """Runs that wait for a job slot, by namespace and site."""

    _keys: dict[tuple[str, str], set[Key]] = field(default_factory=dict)

    def add(self, namespace: str, site: str, key: Key) -> None:
        """The run waits for this site."""
        self._keys.setdefault((namespace, site), set()).add(key)

    def pop(self, namespace: str, site: str) -> set[Key]:
        """The runs that waited for this site; those that find no slot will wait again."""
        return self._keys.pop((namespace, site), set())
