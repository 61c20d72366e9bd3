"""Writes what a run has reached into the log: each milestone once."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fedpipe_operator.rounds.milestones import Milestone

_LOG: Final = logging.getLogger(__name__)


@dataclass
class RunLog:
    """The log of one run.

    It keeps what it wrote in memory alone. So of a run that an operator before this one observed, what was reached by the first reconcile
    is not written: most of it was.
    """

    _written: frozenset[str] | None = None
    """What was observed last, and so was written."""
    _kept: set[str] = field(default_factory=set)
    """What was written and is observed now and then only."""

    def write(self, found: Sequence[Milestone], *, is_new: bool) -> None:
        """Write what is new among these; `is_new`: no operator has observed the run before."""
        written = self._written
        if written is None and not is_new:
            _LOG.info("taken up by this operator")
            written = frozenset(one.key for one in found)
        for one in found:
            if one.key not in (written or ()) and one.key not in self._kept:
                extra = {"round": one.round, "site": one.site, "attempt": one.attempt}
                level = logging.WARNING if one.is_warning else logging.INFO
                _LOG.log(level, "%s", one.message, extra={name: value for name, value in extra.items() if value is not None})
        self._written = frozenset(one.key for one in found)
        self._kept |= {one.key for one in found if one.is_intermittent}
