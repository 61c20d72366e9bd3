"""The planning of one round of many sites, as a task of a worker process (`fedpipe_operator.worker`).

The worker observes the run in its store as a reconcile does, and plans it by the same function: the plan has the bytes that a reconcile
would have written. If the round is planned already, it does nothing.
"""

from dataclasses import replace
from typing import Literal

from fedpipe_operator import names
from fedpipe_operator.api import EdgeSite, FederatedFineTune
from fedpipe_operator.reconcile.observe import ObjectCache, observe
from fedpipe_operator.rounds import Run, StartPlanning
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.rounds.round_plan import Unprofiled, round_plan
from fedpipe_operator.store import Store
from fedpipe_operator.store.address import StoreAddress
from fedpipe_trainer.contract import Wire


class PlanningTask(Wire):
    """Plan one round. The store's credentials are in environment variables."""

    kind: Literal["plan"] = "plan"
    store: StoreAddress
    run: FederatedFineTune
    sites: tuple[EdgeSite, ...]
    """Those that the run's selector matches, sorted by name."""
    round: int
    profiles: dict[str, int]
    """By site with a profile: the attempt that made it. Profiles that arrive later do not count."""
    failed: dict[str, str]
    """By site without a profile: the reason."""
    given_up: tuple[str, ...] = ()
    """Of these sites, those whose profile had the whole time of its stage and missed the deadline."""
    now: float
    """Unix seconds: the plan's start."""


def planning_task(run: Run, action: StartPlanning, address: StoreAddress) -> PlanningTask:
    """The task for this action."""
    return PlanningTask(
        store=address,
        run=run.resource,
        sites=run.sites,
        round=action.round,
        profiles=action.profiles,
        failed=action.failed,
        given_up=action.given_up,
        now=action.now,
    )


def plan_round_of(task: PlanningTask, store: Store) -> None:
    """Plan the round and write its plan, or that too few sites can take part, unless the round has a plan.

    Raises:
        FedPipeError: the store cannot be read or written, or an object of the run is damaged.
    """
    run = Run(task.run, task.sites)
    observed = observe(run, {}, store, ObjectCache(), resumed_at=0.0)
    if observed.round != task.round or task.round in observed.plans:
        return
    profiles = {site: {attempt: observed.profiles[site][attempt]} for site, attempt in task.profiles.items()}
    without = Unprofiled(task.failed, task.given_up)
    made = round_plan(run, replace(observed, profiles=profiles), without, task.round, task.now)
    key = names.round_plan(task.round) if isinstance(made, RoundPlan) else names.out_of_reach(task.round)
    store.create(key, made.to_json().encode())
