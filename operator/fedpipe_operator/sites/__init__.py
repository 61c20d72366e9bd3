"""A site: its claims held against the nodes of its pool, its profile, and what rounds show. Pure.

`SiteProfile` and `Correction` are everything that the planner reads of a site.
"""

from fedpipe_operator.sites.capacity import Node, PoolProblem, claimed_capacity, discovered_capacity, find_pool_problem
from fedpipe_operator.sites.corrections import (
    Correction,
    KeptActivations,
    after_a_rest,
    carried_over,
    corrected,
    with_lateness,
)
from fedpipe_operator.sites.efficiency import Efficiency, efficiency_of
from fedpipe_operator.sites.findings import changes, findings
from fedpipe_operator.sites.measurements import Measurement, measurement
from fedpipe_operator.sites.profile import (
    Resources,
    SiteProfile,
    basis_of,
    granularity,
    site_granularity,
    site_profile,
)

__all__ = [
    "Correction",
    "Efficiency",
    "KeptActivations",
    "Measurement",
    "Node",
    "PoolProblem",
    "Resources",
    "SiteProfile",
    "after_a_rest",
    "basis_of",
    "carried_over",
    "changes",
    "claimed_capacity",
    "corrected",
    "discovered_capacity",
    "efficiency_of",
    "find_pool_problem",
    "findings",
    "granularity",
    "measurement",
    "site_granularity",
    "site_profile",
    "with_lateness",
]
