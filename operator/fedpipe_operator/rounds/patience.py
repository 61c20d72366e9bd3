"""`rounds.patience`: when to stop because nothing gets better, and which round was the best."""

from collections.abc import Mapping

from fedpipe_operator.rounds.records import RoundEvaluation
from fedpipe_operator.rounds.target import better, value_of


def best_round(evaluations: Mapping[int, RoundEvaluation], metric: str) -> int:
    """The trained round with the best metric; the earliest of equals, the last round if none has the metric; 0 before round 1."""
    trained = sorted(round_ for round_ in evaluations if round_ > 0)
    best, best_value = (trained[-1] if trained else 0), None
    for round_ in trained:
        value = value_of(evaluations[round_], metric)
        if value is not None and (best_value is None or better(metric, value, best_value)):
            best, best_value = round_, value
    return best


def exhausted(patience: int | None, evaluations: Mapping[int, RoundEvaluation], metric: str) -> bool:
    """Whether the last `patience` rounds brought nothing better than an earlier one."""
    last = max(evaluations, default=0)
    return patience is not None and last > 0 and last - best_round(evaluations, metric) >= patience
