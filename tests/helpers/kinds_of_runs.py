"""Runs of many kinds, with trainers that do their tasks: by task, what the results hold differs; by aggregation, what is made of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from stand_in_runs import World, a_run
from trainer_results import HEAD, Head, a_profile, an_evaluation, an_update, good_trainer

from fedpipe_trainer.contract import EvaluateTask, ProfileTask, TrainTask

_CLASSIFIER: Final = "base_model.model.classifier.weight"
_HIDDEN: Final = 8


@dataclass(frozen=True)
class KindOfRun:
    """A kind of run, of so many sites."""

    spec: Mapping[str, Any] = field(default_factory=dict)
    sites: int = 3
    labels: tuple[str, ...] = ("a", "b", "c")
    """Those that each site's data have."""
    outputs: int | None = -1
    """Of the head, as a profile says it: as many as there are labels; None: no head is trained."""
    metrics: Callable[[float], Mapping[str, float]] = lambda loss: {"accuracy": 1 / (1 + loss)}
    """By the loss."""
    targets: int = 20
    """Of an evaluation of 20 samples."""

    def world(self, folder: Path, *, reads_progress: bool = False) -> World:
        """A run of this kind, with its trainers."""
        spec = {"sites": {"quorum": 0.6}, "rounds": {"count": 2, "attempts": 2, "deadline": "2h"}} | dict(self.spec)
        return World(a_run(self.sites, **spec), folder, self.train, reads_progress=reads_progress)

    def train(self, task: Any, folder: Path) -> Any:
        """Succeed at every task."""
        match task:
            case ProfileTask():
                base = a_profile(task).base
                assert base is not None
                head = {} if self.outputs is None else {_CLASSIFIER: (self.outputs, _HIDDEN)}
                return a_profile(task, labels=self.labels, base=base.model_copy(update={"head": head}))
            case TrainTask():
                return an_update(task, folder, head=self._head)
            case EvaluateTask():
                loss = 2.0 / (1 + task.round)
                return an_evaluation(task, loss=loss, targets=self.targets, metrics=self.metrics(loss))
            case _:
                return good_trainer(task, folder)

    @property
    def _head(self) -> Head:
        if self.outputs is None:
            return {}
        return HEAD if self.outputs < 0 else {_CLASSIFIER: (self.outputs, _HIDDEN)}


def _generated(loss: float) -> Mapping[str, float]:
    return {"perplexity": math.exp(loss), "bleu": 10.0, "rougeL": 0.3}


def _task(**fields: Any) -> Mapping[str, Any]:
    return {"task": {"maxLength": 16} | fields}


def _of_texts(metrics: Callable[[float], Mapping[str, float]], **fields: Any) -> KindOfRun:
    return KindOfRun(_task(**fields), labels=(), outputs=None, metrics=metrics, targets=200)


def _by(sites: int, **aggregation: Any) -> KindOfRun:
    return KindOfRun({"aggregation": aggregation}, sites=sites)


def _plans(*ranks: int) -> Mapping[str, Any]:
    plans = [{"site": f"site-{letter}", "bits": 16, "rank": rank, "steps": 5} for letter, rank in zip("abcd", ranks, strict=False)]
    return {"planning": {"mode": "Manual", "bits": [16], "ranks": [8], "batchSizes": [2], "plans": plans}}


CLASSIFICATION: Final = KindOfRun()
TASKS: Final = {
    "several labels": KindOfRun(
        _task(type="SequenceClassification", problem="MultiLabel", labels=["a", "b", "c"]),
        metrics=lambda loss: {"microF1": 1 / (1 + loss), "macroF1": 0.5},
    ),
    "labels by profile": KindOfRun(_task(type="SequenceClassification")),
    "regression": KindOfRun(
        _task(type="SequenceClassification", problem="Regression"),
        labels=(),
        outputs=1,
        metrics=lambda loss: {"mse": loss, "pearson": 0.5, "spearman": -0.1},
    ),
    "templates": _of_texts(_generated, type="CausalLM", prompt="{a}", response="{b}"),
    "plain texts": _of_texts(lambda loss: {"perplexity": math.exp(loss)}, type="CausalLM", format="Text"),
    "questions": _of_texts(
        lambda loss: {"tokenF1": 0.5, "exactMatch": 0.4, "perplexity": math.exp(loss)}, type="Seq2SeqLM", format="QuestionAnswering"
    ),
    "preferences": KindOfRun(
        _task(type="Preference"), labels=(), outputs=None, metrics=lambda _loss: {"preferenceAccuracy": 0.6, "rewardMargin": -0.2}
    ),
}
"""By what the results hold."""
AGGREGATIONS: Final = {
    "Median": _by(4, rule="Median"),
    "TrimmedMean": _by(4, rule="TrimmedMean"),
    "Krum": _by(6, rule="Krum"),
    "MultiKrum": _by(6, rule="MultiKrum"),
    "Refuse": _by(4, clipping="Refuse"),
    "heterogeneous ranks": KindOfRun(_plans(2, 8, 4, 1), sites=4),
    "medians of heterogeneous ranks": KindOfRun(_plans(2, 8, 4, 1) | {"aggregation": {"rule": "Median", "clipping": "Refuse"}}, sites=4),
}
"""By what is made of them: as many sites as the rule needs without the hostile one."""
