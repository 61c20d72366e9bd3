"""The planner's only entry point: the run's request and the sites' profiles in; per site a plan, or the reason for none, out."""

from collections.abc import Callable, Mapping
from typing import Final

from fedpipe_operator.api import FineTuneSpec, PlanningMode
from fedpipe_operator.planning.candidates import PlanRequest
from fedpipe_operator.planning.modes import Plans, plan_auto, plan_uniform
from fedpipe_operator.sites import SiteProfile

MODES: Final[Mapping[PlanningMode, Callable[[PlanRequest, Mapping[str, SiteProfile]], Plans]]] = {
    PlanningMode.AUTO: plan_auto,
    PlanningMode.UNIFORM: plan_uniform,
}


def plan_round(spec: FineTuneSpec, profiles: Mapping[str, SiteProfile], head: Mapping[str, tuple[int, ...]]) -> Plans:
    """Plan every profiled site, in the spec's mode.

    Args:
        spec: the run's spec.
        profiles: by site; of sites with the run's common base (`facts_of` names the others).
        head: shapes of the tensors that are trained in full (`facts_of`).
    """
    excluded = {name: reason for name, profile in sorted(profiles.items()) if (reason := _missing_input(profile))}
    usable = {name: profile for name, profile in profiles.items() if name not in excluded}
    result = MODES[spec.planning.mode](PlanRequest(spec=spec, head=head), usable)
    return Plans(plans=result.plans, excluded=result.excluded | excluded)


def _missing_input(profile: SiteProfile) -> str:
    """The message for a profile that lacks what every mode needs; empty when it is complete."""
    if profile.train_samples == 0:
        return "has no training samples: check data.train of its EdgeSite"
    if profile.memory_bytes == 0:
        return "its memory is neither claimed nor measured: set capacity.memory of its EdgeSite"
    if not any(point.tokens_per_second > 0 for point in profile.points):
        return "no training step was measured at any bit width: see the log of its profile task"
    return ""
