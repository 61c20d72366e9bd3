"""A plan for people: rows of plain text for `fedpipe plan`, and the status of a run."""

from typing import NamedTuple

from fedpipe_operator.api import PlanStatus
from fedpipe_operator.planning.plans import Plans
from fedpipe_operator.units import bytes_text, seconds_text
from fedpipe_trainer.contract import Plan

_STATUS_WHY_COUNT = 8
_STATUS_WHY_LENGTH = 1024


class Row(NamedTuple):
    """One site. Of a site without a plan only `site` and `why` are there."""

    site: str
    why: tuple[str, ...]
    bits: str = ""
    batch: str = ""
    rank: str = ""
    adapters: str = ""
    steps: str = ""
    memory: str = ""
    duration: str = ""
    upload: str = ""


def rows(plans: Plans) -> list[Row]:
    """A row for every site in order of name: first those with a plan, then those left out with the reason."""
    planned = [_row(site, plan) for site, plan in sorted(plans.plans.items())]
    return planned + [Row(site=site, why=(reason,)) for site, reason in sorted(plans.excluded.items())]


def plan_status(site: str, plan: Plan) -> PlanStatus:
    """A plan as a run's status shows it: bounded."""
    return PlanStatus(
        site=site,
        bits=plan.bits,
        batch_size=plan.batch_size,
        steps=plan.steps,
        rank=max(plan.ranks.values(), default=0),
        adapters=_adapters(plan),
        memory=plan.forecast.memory_bytes,
        seconds=round(plan.forecast.seconds, 1),
        why=tuple(sentence[:_STATUS_WHY_LENGTH] for sentence in plan.why[:_STATUS_WHY_COUNT]),
    )


def _row(site: str, plan: Plan) -> Row:
    ranks = sorted({rank for rank in plan.ranks.values() if rank})
    return Row(
        site=site,
        bits=str(plan.bits),
        batch=str(plan.batch_size),
        rank="–".join(str(rank) for rank in sorted({ranks[0], ranks[-1]})) if ranks else "0",
        adapters=str(_adapters(plan)),
        steps=str(plan.steps),
        memory=bytes_text(plan.forecast.memory_bytes),
        duration=seconds_text(plan.forecast.seconds),
        upload=bytes_text(plan.forecast.upload_bytes),
        why=plan.why,
    )


def _adapters(plan: Plan) -> int:
    return sum(rank > 0 for rank in plan.ranks.values())
