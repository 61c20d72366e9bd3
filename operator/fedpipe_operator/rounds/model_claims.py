"""Which claims a run may mount as its model: those that a site names for it, and none that holds the data or the cache of a site. Pure.

A run's author may write any claim into `spec.model.source`, and a trainer reads the whole volume behind it.
"""

from collections.abc import Iterable
from typing import Final

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.formatting import excerpt
from fedpipe_operator.rounds.observed import Run

_NOT_ALLOWED: Final = "ModelClaimNotAllowed: "
_LONGEST_LIST: Final = 200
"""Characters of a site's claims in a message."""


def private_claims(sites: Iterable[EdgeSite], namespace: str) -> frozenset[str]:
    """The claims of this namespace that hold the data or the cache of one of these sites."""
    of_namespace = (site for site in sites if site.metadata.namespace == namespace)
    volumes = (volume for site in of_namespace for volume in (site.spec.data.volume, site.spec.cache))
    return frozenset(volume.persistent_volume_claim.claim_name for volume in volumes if volume is not None)


def claim_problem(run: Run, site: EdgeSite) -> str:
    """Why this site's trainers may not mount the run's model; empty if they may, or if no claim holds it."""
    claim = run.spec.model.claim
    if claim is None or (claim in site.spec.model_claims and not _is_private(run, claim)):
        return ""
    return f"{_NOT_ALLOWED}{_private(claim) if _is_private(run, claim) else _not_named(claim, site)}"


def export_problem(run: Run) -> str:
    """Why the run's export, which is at no site, may not mount the run's model; empty if it may: one of the run's sites allows it."""
    problems = [claim_problem(run, site) for site in run.sites]
    if run.spec.model.claim is None or "" in problems:
        return ""
    return problems[0] if problems else f"{_NOT_ALLOWED}the run has no site whose modelClaims names {run.spec.model.claim}"


def _is_private(run: Run, claim: str) -> bool:
    return claim in run.private_claims | private_claims(run.sites, run.resource.metadata.namespace)


def _private(claim: str) -> str:
    return f"the claim {claim} of spec.model.source holds the data or the cache of a site: keep the model in a claim of its own"


def _not_named(claim: str, site: EdgeSite) -> str:
    named = f"names {excerpt(', '.join(site.spec.model_claims), _LONGEST_LIST)}" if site.spec.model_claims else "is empty"
    return f"spec.model.source mounts the claim {claim}, and modelClaims of the site {named}: name one of these, or have it added"
