"""Null diff-base storage for kopf: no handler of this operator depends on diffs."""

from typing import Any, cast

import kopf


class NullDiffBaseStorage(kopf.DiffBaseStorage):
    """Stores nothing, which saves a deep copy of every object at every event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """An empty essence."""
        return cast("kopf.BodyEssence", {})

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Store nothing."""
