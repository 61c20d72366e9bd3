"""Updates in, global adapter out: the gate, the methods, and a round's aggregation from end to end.

Given readers and writers, it touches nothing else: no files, no network, no clock.
"""

from fedpipe_operator.aggregation.methods import METHODS
from fedpipe_operator.aggregation.round import Candidate, RoundInput, RoundResult, Rule, aggregate_round
from fedpipe_operator.aggregation.tensors import FileSource, MalformedError, Sink, Source
from fedpipe_operator.aggregation.values import CannotAggregateError

__all__ = [
    "METHODS",
    "Candidate",
    "CannotAggregateError",
    "FileSource",
    "MalformedError",
    "RoundInput",
    "RoundResult",
    "Rule",
    "Sink",
    "Source",
    "aggregate_round",
]
