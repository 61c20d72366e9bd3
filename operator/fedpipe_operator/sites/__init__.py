"""A site: its claims held against the nodes of its pool (`capacity`), its profile (`profile`), and what rounds show (`corrections`). Pure.

`SiteProfile` and `Correction` are everything that the planner reads of a site.
"""

from fedpipe_operator.sites.capacity import Node, PoolProblem, claimed_capacity, discovered_capacity, find_pool_problem
from fedpipe_operator.sites.corrections import REPLANNED, Correction, Measurement, corrected, correction_note, measurement
from fedpipe_operator.sites.profile import SiteProfile, granularity, site_granularity, site_profile

__all__ = [
    "REPLANNED",
    "Correction",
    "Measurement",
    "Node",
    "PoolProblem",
    "SiteProfile",
    "claimed_capacity",
    "corrected",
    "correction_note",
    "discovered_capacity",
    "find_pool_problem",
    "granularity",
    "measurement",
    "site_granularity",
    "site_profile",
]
