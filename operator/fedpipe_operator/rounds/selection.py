"""`sites.perRound`: which sites take part in a round."""

import hashlib
from collections.abc import Iterable


def select(candidates: Iterable[str], *, per_round: int | None, seed: str, round_: int) -> tuple[str, ...]:
    """A seeded choice of sites, sorted by name; the same for the same arguments in whatever order they come.

    Each site's place is a hash of seed, round and name, so a site that joins or leaves changes nobody else's place.
    """
    ranked = sorted(candidates, key=lambda site: hashlib.sha256(f"{seed}/{round_}/{site}".encode()).hexdigest())
    return tuple(sorted(ranked if per_round is None else ranked[:per_round]))
