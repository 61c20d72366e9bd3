"""One run: ranks chosen by a rule within a budget of bytes, then training and evaluation with the trainer's own functions."""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from configuration import Problem
from scores import SCORES, Scores
from task import Task, load_task
from training import evaluate, steps, trainable

from fedpipe_operator.planning.frontier import Frontier
from fedpipe_operator.planning.sizes import adapter_parameters
from fedpipe_trainer.adapters import AdapterTensors

FOLDER: Final = Path(__file__).parent / "results"
RANKS: Final = (4, 8, 16, 32)
BUDGETS: Final[Mapping[str, int]] = {"scarce": 1, "ample": 4}
"""The rank that all weights alike can have: with 1, there is an adapter of the smallest rank for a quarter of the weights."""
_ALL_CLASSES: Final = frozenset(range(20))
_EVALUATE_AT: Final = (80,)


@dataclass(frozen=True)
class Trial:
    """What is trained. Every field is part of the key under which the result is stored."""

    budget: str
    rule: str
    seed: int
    evaluate_at: tuple[int, ...] = _EVALUATE_AT


def important(scores: Scores, _seed: int) -> Scores:
    """The scores as they are."""
    return scores


def inverse(scores: Scores, _seed: int) -> Scores:
    """The same scores, the largest for the weight that had the smallest."""
    ordered = sorted(scores, key=lambda name: scores[name])
    return {name: scores[other] for name, other in zip(ordered, reversed(ordered), strict=True)}


def shuffled(scores: Scores, seed: int) -> Scores:
    """The same scores, each for a random weight."""
    others = sorted(scores)
    random.Random(seed).shuffle(others)  # noqa: S311 - not for cryptography
    return {name: scores[other] for name, other in zip(sorted(scores), others, strict=True)}


RULES: Final[Mapping[str, tuple[str, Any]]] = {
    "uniform": ("", None),
    "random": ("gradient", shuffled),
    "gradient": ("gradient", important),
    "gradient, inverse": ("gradient", inverse),
    "factor": ("factor", important),
    "learned": ("learned", important),
}
"""By name: a score, and what becomes of it; `uniform` has neither."""


def ranks_by(trial: Trial, task: Task) -> dict[str, int]:
    """The ranks of a trial: the planner's for the rule's scores, within the budget of its elements."""
    common = {weight.name: BUDGETS[trial.budget] for weight in task.weights}
    score, change = RULES[trial.rule]
    if not score:
        return common
    scores = change(SCORES[score](task, trial.seed), trial.seed)
    return Frontier(task.weights, scores, RANKS).exact(adapter_parameters(task.weights, common))


def compute(trial: Trial) -> dict[str, Any]:
    """The result: from its file, otherwise computed and stored when it is complete."""
    found = stored(trial)
    if found is not None:
        return found
    problem = Problem(seed=trial.seed)
    task = load_task(problem)
    ranks, curve = ranks_by(trial, task), []
    with trainable(task, {name: rank for name, rank in ranks.items() if rank}, AdapterTensors(), trial.seed) as adapters:
        losses = steps(task, adapters, task.train, problem, name="importance")
        for number, _ in zip(range(1, max(trial.evaluate_at) + 1), losses, strict=False):
            if number in trial.evaluate_at:
                quality = evaluate(task, _ALL_CLASSES)
                curve.append({"steps": number, "loss": quality.loss, "accuracy": quality.accuracy})
    result = {
        "trial": asdict(trial),
        "elements": adapter_parameters(task.weights, ranks),
        "ranks": {name: rank for name, rank in ranks.items() if rank},
        "curve": curve,
    }
    FOLDER.mkdir(exist_ok=True)
    partial = _path(trial).with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.rename(_path(trial))
    return result


def stored(trial: Trial) -> dict[str, Any] | None:
    """The stored result, or None."""
    path = _path(trial)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _path(trial: Trial) -> Path:
    text = json.dumps(asdict(trial), sort_keys=True)
    return FOLDER / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
