"""Who is mixed with whom: with how many others a site is in an aggregate (`policy.minSites`), in the round and in each weight. Pure."""

from collections.abc import Callable, Mapping

Mixed = Callable[[int], int]
"""How many of so many updates an aggregate is made of."""


def mixable(min_sites: Mapping[str, int], most: int | None = None, mixed: Mixed = int) -> frozenset[str]:
    """The largest set of sites each of which is content with the number of sites that are mixed.

    Args:
        min_sites: by site, how many sites it must be mixed with, itself included.
        most: the most sites that take part at once; None: all.
        mixed: how many of those are mixed; left out: all.
    """
    left = dict(min_sites)
    while True:
        size = mixed(len(left) if most is None else min(most, len(left)))
        content = {site: least for site, least in left.items() if least <= size}
        if len(content) == len(left):
            return frozenset(left)
        left = content
