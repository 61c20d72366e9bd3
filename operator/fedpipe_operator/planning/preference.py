"""Which of two possible candidates is better, for every mode."""

from math import floor
from typing import Final

from fedpipe_operator.planning.candidates import Candidate

_BANDS: Final = 20
"""Shares of trained steps are compared in steps of 5 %, so that a hair of speed does not decide over bits."""


def preference(candidate: Candidate) -> tuple[int, int, int, int]:
    """The larger the better: trained share (all wanted steps, or bands below), bits, batch, rank."""
    return (floor(_BANDS * candidate.trained_share), candidate.bits, candidate.batch, candidate.rank)
