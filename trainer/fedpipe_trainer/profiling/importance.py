"""How important each target weight is for a site's own data, before any training. Only the scores leave the site.

The samples are a random choice of the site's training data, in two disjoint halves that are scored apart: the planner
trusts the scores only if the halves agree. A site that cannot be scored says why, and its profile succeeds all the same.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch

from fedpipe_trainer import device
from fedpipe_trainer.contract import FailureReason, Importance, ImportanceMethod
from fedpipe_trainer.contract.result import MAX_SCORE
from fedpipe_trainer.data import Example
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.profiling import gradient, sensitivity
from fedpipe_trainer.profiling.subject import Subject

Halves = tuple[Mapping[str, float], Mapping[str, float]]

_LOG = logging.getLogger(__name__)

_LARGEST_BATCH: Final = 8
_METHODS: Final = {ImportanceMethod.GRADIENT: gradient, ImportanceMethod.SENSITIVITY: sensitivity}
"""By method: a module with `SAMPLES`, `FEWEST_BATCHES` and `scores_of_halves`."""
_ADVICE: Final = "or set planning.importance to None, which gives every weight the same importance"


def measure_importance(method: ImportanceMethod, subject: Subject, batch_size: int) -> Importance | None:
    """The score of each target weight on two disjoint halves of some samples, or the problem that prevented it; None for method None.

    Args:
        method: how to score.
        subject: the base, which must not have adapters, and the samples.
        batch_size: samples that are known to fit in memory in a training step.

    Raises:
        Terminated: the task was requested to stop.
    """
    if method is ImportanceMethod.NONE:
        return None
    scorer = _METHODS[method]
    batches = draw_batches(subject, scorer.SAMPLES, min(batch_size, _LARGEST_BATCH), at_least=scorer.FEWEST_BATCHES)
    samples = sum(len(batch) for batch in batches)
    halves: Halves = ({}, {})
    if len(batches) < scorer.FEWEST_BATCHES:
        problem = (
            f"no scores: they need {scorer.FEWEST_BATCHES} training samples, the site has {samples}; give the site more data, {_ADVICE}"
        )
    else:
        halves, problem = _score(method, subject, batches)
    if problem:
        _LOG.warning("%s", problem)
        return Importance(method=method, samples=samples, problem=problem)
    return Importance(method=method, samples=samples, first_half=dict(halves[0]), second_half=dict(halves[1]))


def draw_batches(subject: Subject, count: int, batch_size: int, *, at_least: int) -> list[list[Example]]:
    """Batches of `count` different samples in all, drawn at random; from fewer samples, smaller batches: at least so many, if possible."""
    examples = subject.examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(subject.seed))[:count].tolist()
    size = max(1, min(batch_size, len(order) // at_least))
    return [[examples[i] for i in order[at : at + size]] for at in range(0, len(order) - size + 1, size)]


def problem_of(scores: Mapping[str, float], expected: Sequence[str], bits: int) -> str:
    """Why these scores cannot be used, and what to do; empty if they can."""
    if not scores or all(score == 0 for score in scores.values()):
        return (
            f"no scores: no target weight receives a gradient at {bits} bits, because the layers above block it or compute in integers; "
            f"use another base model, {_ADVICE}"
        )
    broken = next((weight for weight, score in scores.items() if not math.isfinite(score)), None)
    if broken is not None:
        return f"no scores: that of {broken} is not finite at {bits} bits; allow 32 in planning.bits, {_ADVICE}"
    huge = next((weight for weight, score in scores.items() if score > MAX_SCORE), None)
    if huge is not None:
        return f"no scores: that of {huge} is {scores[huge]:.2g} at {bits} bits, above {MAX_SCORE:.0e}; use another base model, {_ADVICE}"
    missing = next((weight for weight in expected if weight not in scores), None)
    if missing is not None:
        return f"no scores: {missing} receives no gradient; leave it out of planning.targetModules, {_ADVICE}"
    return ""


def _score(method: ImportanceMethod, subject: Subject, batches: Sequence[list[Example]]) -> tuple[Halves, str]:
    """The scores of both halves, and a problem or an empty text."""
    expected = [weight.name for weight in subject.weights]
    try:
        halves = _METHODS[method].scores_of_halves(subject, batches)
    except (TaskFailed, RuntimeError, MemoryError) as error:
        if not (isinstance(error, TaskFailed) and error.reason is FailureReason.OUT_OF_MEMORY) and not device.is_out_of_memory(error):
            raise
        batch = len(batches[0])
        return ({}, {}), f"no scores: out of memory with {batch} samples at once; allow a smaller batch in planning.batchSizes, {_ADVICE}"
    problems: Iterator[str] = (problem_of(half, expected, subject.base.bits) for half in halves)
    return halves, next(filter(None, problems), "")
