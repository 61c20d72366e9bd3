"""`sites.quorum`: how many of a round's sites must send an update."""

import math


def needed(quorum: float, *, matched: int, per_round: int | None) -> int:
    """Updates a round needs: the share `quorum` of the sites it asks for, at least one.

    The share is of what the user asked for, not of the sites that happened to be fit: a fleet of which too many
    cannot hold the model fails with their reasons, instead of going on with a rest nobody chose.
    """
    asked = matched if per_round is None else min(per_round, matched)
    # Rounded first: 0.8 * 5 must be 4 sites and not, by a floating-point hair, 5.
    return max(1, math.ceil(round(quorum * asked, 9)))
