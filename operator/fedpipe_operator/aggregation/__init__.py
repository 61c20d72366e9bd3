"""Aggregation of a round: check the updates in the gate, aggregate the accepted ones, write the global adapter.

Apart from the worker, which is the entry point, the package reads and writes through the readers and the writer that it is given: it opens
no files or connections and reads no clock.
"""

from fedpipe_operator.aggregation.config import AggregationConfig
from fedpipe_operator.aggregation.factors import CannotAggregateError
from fedpipe_operator.aggregation.methods import METHODS
from fedpipe_operator.aggregation.round import Candidate, RoundInput, RoundResult, aggregate_round
from fedpipe_operator.aggregation.rules import RULES
from fedpipe_operator.aggregation.tensors import FileSource, MalformedError, Sink, Source

__all__ = [
    "METHODS",
    "RULES",
    "AggregationConfig",
    "Candidate",
    "CannotAggregateError",
    "FileSource",
    "MalformedError",
    "RoundInput",
    "RoundResult",
    "Sink",
    "Source",
    "aggregate_round",
]
