"""The only entry: what a run asks and what its sites can do, in; a plan for every site, or why not, out."""

from collections.abc import Callable, Mapping
from typing import Final

from fedpipe_operator.api import FineTuneSpec, PlanningMode
from fedpipe_operator.planning.auto import auto
from fedpipe_operator.planning.candidates import Request
from fedpipe_operator.planning.plans import Plans
from fedpipe_operator.planning.uniform import uniform
from fedpipe_operator.sites.profile import SiteProfile

MODES: Final[Mapping[PlanningMode, Callable[[Request, Mapping[str, SiteProfile]], Plans]]] = {
    PlanningMode.AUTO: auto,
    PlanningMode.UNIFORM: uniform,
}


def plan_round(spec: FineTuneSpec, profiles: Mapping[str, SiteProfile], head: Mapping[str, tuple[int, ...]]) -> Plans:
    """Plan every profiled site, in the spec's mode.

    Args:
        spec: what the run asks.
        profiles: by site; of sites with the run's common base (`facts_of` names the others).
        head: shapes of the tensors that are trained whole (`facts_of`).
    """
    excluded = {name: reason for name, profile in sorted(profiles.items()) if (reason := _unplannable(profile))}
    plannable = {name: profile for name, profile in profiles.items() if name not in excluded}
    outcome = MODES[spec.planning.mode](Request(spec=spec, head=head), plannable)
    return Plans(plans=outcome.plans, excluded=outcome.excluded | excluded)


def _unplannable(profile: SiteProfile) -> str:
    """What a profile lacks that no mode can do without; empty when nothing."""
    if profile.train_samples == 0:
        return "has no training samples: check data.train of its EdgeSite"
    if profile.memory_bytes == 0:
        return "its memory is neither claimed nor measured: set capacity.memory of its EdgeSite"
    if not any(point.tokens_per_second > 0 for point in profile.points):
        return "no training step was measured at any bits: see the log of its profile task"
    return ""
