"""Why a round's plan of a site differs from the one before: what was found, and what is planned differently for it. Pure."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from statistics import fmean
from typing import Final

from fedpipe_operator.rounds.evidence import Evidence
from fedpipe_trainer.contract import Plan

REPLANNED: Final = "re-planned: "
"""What the reason for a changed plan begins with."""
REPLANNED_EVENT: Final = "Replanned"
_STALLED: Final = "the last rounds brought no improvement, so that the site trains as many layers as it can"


class Cause(StrEnum):
    """What a plan was changed for, in one word."""

    OUT_OF_MEMORY = "OutOfMemory"
    CACHE_FAILED = "CacheFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    IN_TIME_AGAIN = "InTimeAgain"
    STEPS_OFF = "StepsOff"
    LOADING_OFF = "LoadingOff"
    TRANSFERS_OFF = "TransfersOff"
    MEMORY_OFF = "MemoryOff"
    TRIED_AGAIN = "TriedAgain"
    RESOURCES_CHANGED = "ResourcesChanged"
    SITE_CHANGED = "SiteChanged"
    STALLED = "Stalled"


_CAUSES: Final = (
    ("the last plan ran out of memory", Cause.OUT_OF_MEMORY),
    ("its cache did not work", Cause.CACHE_FAILED),
    ("it was still at work at the deadline", Cause.DEADLINE_EXCEEDED),
    ("it was done in time again", Cause.IN_TIME_AGAIN),
    ("it was left out of the last round", Cause.IN_TIME_AGAIN),
    ("a step took", Cause.STEPS_OFF),
    ("loading and evaluation took", Cause.LOADING_OFF),
    ("transfers took", Cause.TRANSFERS_OFF),
    ("training needed", Cause.MEMORY_OFF),
    ("what rounds had shown of it counts less", Cause.TRIED_AGAIN),
    ("its memory is now", Cause.RESOURCES_CHANGED),
    ("its upload bandwidth is now", Cause.RESOURCES_CHANGED),
    ("its download bandwidth is now", Cause.RESOURCES_CHANGED),
    ("its EdgeSite has changed", Cause.SITE_CHANGED),
    ("the last rounds brought no improvement", Cause.STALLED),
)
"""How the first of the findings in such a reason begins. A test holds them to the functions that find them."""


def cause_of(plan: Plan) -> Cause | None:
    """The first of what the plan was changed for; None if it was not."""
    note = next((one.removeprefix(REPLANNED) for one in plan.why if one.startswith(REPLANNED)), None)
    return None if note is None else next((cause for words, cause in _CAUSES if note.startswith(words)), None)


def with_reasons(plans: Mapping[str, Plan], before: Mapping[str, Plan], evidence: Evidence) -> dict[str, Plan]:
    """The plans of a round; one that differs for what was found of its site has a sentence about that as the second of its reasons.

    Args:
        plans: by site.
        before: the plans of the round before.
        evidence: what was found since.
    """
    return {site: _with_reason(plan, before.get(site), _found(site, plan, before.get(site), evidence)) for site, plan in plans.items()}


def difference(before: Plan, now: Plan) -> str:
    """What is planned differently, in words; empty if nothing is."""
    numbers = (
        ("{} instead of {} bits", before.bits, now.bits),
        ("{} instead of {} steps", before.steps, now.steps),
        ("{} instead of {} samples a step", before.batch_size, now.batch_size),
        ("micro-batches of {} instead of {} samples", before.micro_batch, now.micro_batch),
        ("{} instead of {} trained layers", before.trained_layers, now.trained_layers),
    )
    changes = [words.format(new, old) for words, old, new in numbers if new != old]
    old_rank, new_rank = _mean_rank(before), _mean_rank(now)
    if old_rank != new_rank:
        changes.append(f"a mean rank of {new_rank} instead of {old_rank}")
    for noun, was, is_ in (
        ("recomputed activations", before.gradient_checkpointing, now.gradient_checkpointing),
        ("cached activations", before.cache_activations, now.cache_activations),
    ):
        if was != is_:
            changes.append(f"{'with' if is_ else 'without'} {noun}")
    return ", ".join(changes)


def _found(site: str, plan: Plan, before: Plan | None, evidence: Evidence) -> Sequence[str]:
    """What was found of a site that its plan follows from. A stall matters where more layers are trained for it."""
    is_deeper = before is not None and site in evidence.deepened and plan.lowest_layer < before.lowest_layer
    return (*evidence.findings.get(site, ()), *((_STALLED,) if is_deeper else ()))


def _with_reason(plan: Plan, before: Plan | None, found: Sequence[str]) -> Plan:
    changed = "it takes part" if before is None else difference(before, plan)
    if not found or not changed:
        return plan
    reason = f"{REPLANNED}{'; '.join(found)}: {changed}"
    return plan.model_copy(update={"why": (*plan.why[:1], reason, *plan.why[1:])})


def _mean_rank(plan: Plan) -> str:
    """Of the weights with an adapter."""
    return f"{fmean([rank for rank in plan.ranks.values() if rank] or [0]):.3g}"
