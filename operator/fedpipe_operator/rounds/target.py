"""`rounds.target` and which of two values of a metric is the better one."""

from fedpipe_operator.api import LOWER_IS_BETTER, Target
from fedpipe_operator.rounds.records import RoundEvaluation, SiteEvaluation


def value_of(evaluation: RoundEvaluation | SiteEvaluation, metric: str) -> float | None:
    """The evaluation's value of this metric; None if it was not reported."""
    return evaluation.loss if metric == "loss" else evaluation.metrics.get(metric)


def better(metric: str, value: float, than: float) -> bool:
    """Whether `value` is strictly better than `than`."""
    return value < than if metric in LOWER_IS_BETTER else value > than


def reached(target: Target | None, evaluation: RoundEvaluation) -> bool:
    """Whether this round's metric is at least as good as the target."""
    if target is None:
        return False
    value = value_of(evaluation, target.metric)
    return value is not None and not better(target.metric, target.value, value)
