"""`decide`: the whole life of a run on one screen. Pure: no clock, no chance, no I/O.

It is called again and again with what was seen (`Seen`) and the time, and each time says the next step (`Decision`).
It remembers nothing: after its actions and status are applied, and nothing else happened, it asks for nothing more.

    profile ──▶ plan ──▶ evaluate the base ──▶ ┌ plan ──▶ train ──▶ aggregate ──▶ evaluate ┐ ──▶ export
                                               └──────────── until `ended` ───────────────┘
"""

from fedpipe_operator.api import ConditionStatus, ConditionType, FederatedFineTune, Reason, seconds
from fedpipe_operator.doors import AT_WORK
from fedpipe_operator.rounds.actions import (
    Action,
    CommitEvaluation,
    CommitPlan,
    Decision,
    Discard,
    Event,
    StartAggregation,
    StartEvaluation,
    StartExport,
    StartProfile,
    StartTraining,
)
from fedpipe_operator.rounds.seen import Run, Seen, job_of
from fedpipe_operator.rounds.stages import (
    End,
    Look,
    Step,
    aggregate,
    ended,
    evaluate,
    export,
    exported_round,
    fail,
    plan,
    profile,
    train,
)
from fedpipe_operator.rounds.status import events_of, status_of

__all__ = [
    "Action",
    "CommitEvaluation",
    "CommitPlan",
    "Decision",
    "Discard",
    "Event",
    "Run",
    "Seen",
    "StartAggregation",
    "StartEvaluation",
    "StartExport",
    "StartProfile",
    "StartTraining",
    "decide",
    "exported_round",
    "is_over",
    "job_of",
]


def decide(run: Run, seen: Seen, now: float) -> Decision:
    """The next step of a run.

    Args:
        run: what is asked for, and the sites that match.
        seen: one look at the store and the jobs.
        now: the time in Unix seconds.
    """
    if is_over(run.resource):
        return Decision(run.resource.status, _discards(seen, frozenset()))
    look = Look(run, seen, now)
    step = _next_step(look)
    status = status_of(look, step)
    return Decision(
        status=status,
        actions=step.actions + _discards(seen, step.wanted),
        events=events_of(run.resource.status, status),
        look_again_at=None if step.end or run.spec.suspend else _next_deadline(look),
    )


def _next_step(look: Look) -> Step:
    """The first stage that is not done says what is to be done."""
    if look.run.spec.suspend:
        return Step(Reason.SUSPENDED_BY_SPEC, "set spec.suspend to false to go on in the same round")
    why = ended(look)
    if why is not None:
        return export(look) or Step(why, f"after round {look.seen.round - 1}", end=End.SUCCEEDED)
    if not look.run.sites and look.seen.round not in look.seen.plans:
        return _without_sites(look)
    stages = (profile, plan, evaluate) if look.seen.round == 0 else (profile, plan, train, aggregate, evaluate)
    return next(step for stage in stages if (step := stage(look)) is not None)


def _without_sites(look: Look) -> Step:
    """Sites may be on their way: files are applied in the order of their names."""
    message = "no EdgeSite of this namespace carries the labels of sites.selector: create one, or correct the selector"
    over = look.now >= max(look.seen.resumed_at, look.seen.last_round_ended_at) + seconds(look.run.spec.rounds.deadline)
    return fail(Reason.NO_SITES, message) if over else Step(Reason.NO_SITES, message)


def is_over(resource: FederatedFineTune) -> bool:
    """Whether the run's status says that it succeeded or failed: nothing is ever done for it again."""
    ends = (ConditionType.SUCCEEDED, ConditionType.FAILED)
    return any(one.type in ends and one.status is ConditionStatus.TRUE for one in resource.status.conditions)


def _discards(seen: Seen, wanted: frozenset[str]) -> tuple[Discard, ...]:
    """Jobs that are still at work though nobody waits for their result: late, suspended, or of a run that is over."""
    let_be = wanted | seen.reported
    return tuple(Discard(name) for name, job in sorted(seen.jobs.items()) if job.state in AT_WORK and name not in let_be)


def _next_deadline(look: Look) -> float:
    """When the time of the oldest job at work is up; a whole deadline from now if none is."""
    at_work = [job.started_at for job in look.seen.jobs.values() if job.state in AT_WORK]
    return max(look.seen.resumed_at, min(at_work, default=look.now)) + seconds(look.run.spec.rounds.deadline)
