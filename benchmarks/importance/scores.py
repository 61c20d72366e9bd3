"""How the weights are scored, on a few training documents and before the run; each score is a function of the task and a seed."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

import torch
from configuration import Problem
from task import Task
from training import ranks_of, steps, trainable

from fedpipe_operator.admission import AdmittedProfile
from fedpipe_operator.api import EdgeSite
from fedpipe_operator.planning.importance import combine
from fedpipe_operator.sites import site_profile
from fedpipe_trainer.adapters import AdapterTensors
from fedpipe_trainer.adapters.wire import lora_a_key, lora_b_key
from fedpipe_trainer.contract import BaseModelFacts, Importance, ImportanceMethod, Measured, Outcome, ProfileResult, RunRef
from fedpipe_trainer.profiling.importance import measure_importance
from fedpipe_trainer.profiling.subject import Subject
from fedpipe_trainer.steps import compute_gradients, training_mode

Scores = Mapping[str, float]

_BATCH: Final = 8
_SAMPLES: Final = 32
_PROBE_RANK: Final = 4
_WARM_UP: Final = 20


def gradient(task: Task, seed: int) -> Scores:
    """The product's: mean |W · dL/dW|, measured as in a profile and combined as by the planner."""
    subject = Subject(task.base, task.objective, task.weights, task.train, rank=_PROBE_RANK, seed=seed)
    importance = measure_importance(ImportanceMethod.GRADIENT, subject, _BATCH)
    assert importance is not None  # noqa: S101 - only the method None has none
    return _combined(task, importance)


def factor(task: Task, seed: int) -> Scores:
    """Σ |dL/dB| over the factor B = 0 of an adapter: to first order what a step of Adam gains, which is of equal size for all elements."""
    with trainable(task, ranks_of(task, _PROBE_RANK, None), AdapterTensors(), seed) as adapters:
        chosen = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed))[:_SAMPLES].tolist()
        with training_mode(adapters.model, checkpointing=False):
            compute_gradients([task.train[i] for i in chosen], task.objective, task.base, adapters=adapters, micro_batch=_BATCH)
        gradients = {weight.name: adapters.trainable[lora_b_key(weight.name)].grad for weight in task.weights}
        return {name: float(value.abs().sum()) for name, value in gradients.items() if value is not None}


def learned(task: Task, seed: int) -> Scores:
    """‖B·A‖ after some steps with equal ranks: what the planner uses from round 2 on, once the head is no longer random."""
    with trainable(task, ranks_of(task, _PROBE_RANK, None), AdapterTensors(), seed) as adapters:
        for _ in islice(steps(task, adapters, task.train, Problem(seed=seed), name="warm-up"), _WARM_UP):
            pass
        factors = {
            weight.name: (adapters.trainable[lora_b_key(weight.name)], adapters.trainable[lora_a_key(weight.name)])
            for weight in task.weights
        }
        return {name: float((b.detach() @ a.detach()).norm()) for name, (b, a) in factors.items()}


SCORES: Final[Mapping[str, Callable[[Task, int], Scores]]] = {"gradient": gradient, "factor": factor, "learned": learned}


def _combined(task: Task, importance: Importance) -> Scores:
    """The planner's scores of a run with one site, which has this profile."""
    base = BaseModelFacts(
        architecture="bert",
        parameters=1,
        quantised_parameters=0,
        layers=task.layers,
        hidden_size=task.weights[0].d_in,
        intermediate_size=1,
        attention_heads=1,
        vocabulary_size=1,
        weights=task.weights,
    )
    result = ProfileResult(
        run=RunRef(namespace="benchmark", name="importance", uid="0"),
        site="site",
        round=0,
        attempt=0,
        outcome=Outcome.COMPLETED,
        fingerprint=task.base.fingerprint,
        measured=Measured(),
        base=base,
        train_samples=len(task.train),
        importance=importance,
    )
    volume = {"persistentVolumeClaim": {"claimName": "data"}}
    spec = {"data": {"train": "train.jsonl", "validation": "validation.jsonl", "volume": volume}}
    site = site_profile(EdgeSite.model_validate({"metadata": {"name": "site"}, "spec": spec}), AdmittedProfile(result))
    combined = combine({"site": site}, task.weights)
    if combined.is_uniform:
        raise SystemExit(f"the planner does not trust these scores: {combined.note}")
    return combined.scores
