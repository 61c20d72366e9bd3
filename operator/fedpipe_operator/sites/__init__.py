"""A site's capacity: its claims held against the nodes of its pool (`capacity`) and against its profile (`profile`). Pure.

`SiteProfile` is everything that the planner reads of a site.
"""

from fedpipe_operator.sites.capacity import Node, PoolProblem, claimed_capacity, discovered_capacity, find_pool_problem
from fedpipe_operator.sites.profile import SiteProfile, site_profile

__all__ = [
    "Node",
    "PoolProblem",
    "SiteProfile",
    "claimed_capacity",
    "discovered_capacity",
    "find_pool_problem",
    "site_profile",
]
