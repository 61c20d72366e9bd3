"""Reads what trainers write of their progress. It is shown and decides nothing: what cannot be read or admitted is left out.

A job is read at most every 15 seconds, since its trainer writes no oftener, and a reconcile reads a bounded number of them, those first
that were read longest ago: so the progress of a thousand sites is some reconciles old, and delays none.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final

from fedpipe_operator import names
from fedpipe_operator.admission import AdmittedProgress, Refused
from fedpipe_operator.api.edgesite import TrainingLosses
from fedpipe_operator.backend import JobState, JobStatus
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.rounds import Observed, Run
from fedpipe_operator.rounds.admitting import progress_admission
from fedpipe_operator.rounds.kinds import KINDS
from fedpipe_operator.store import Store
from fedpipe_trainer.contract import PROGRESS_SECONDS, Progress

MOST_READS: Final = 50
"""In one reconcile: a quarter of a second at a store that answers in 5 ms."""

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Read:
    """What was read last of a job's progress."""

    at: float
    """Unix seconds."""
    value: AdmittedProgress | Refused | None


@dataclass
class ProgressReader:
    """What was read of the active jobs of one run. A restart loses it, and reads it again."""

    _read: dict[str, _Read] = field(default_factory=dict)
    """By job."""

    def add(self, run: Run, observed: Observed, store: Store, now: float) -> Observed:
        """What was observed, with the progress of the jobs that run."""
        running = {name: status for name, status in observed.jobs.items() if _may_have_progress(status)}
        self._read = {name: one for name, one in self._read.items() if name in running}
        due = sorted((name for name in running if now >= self._due(name)), key=self._due)
        for name in due[:MOST_READS]:
            if not self._read_job(run, running[name], store, now):
                break
        known, open_sites = {name: one.value for name, one in self._read.items()}, _sites_that_show_losses(run)
        jobs = {name: _with_progress(status, known.get(name), open_sites) for name, status in observed.jobs.items()}
        refused = {name: value for name, value in known.items() if isinstance(value, Refused)}
        return replace(observed, jobs=jobs, refused_progress=refused)

    def _due(self, name: str) -> float:
        return self._read[name].at + PROGRESS_SECONDS if name in self._read else 0.0

    def _read_job(self, run: Run, status: JobStatus, store: Store, now: float) -> bool:
        """Read one job's progress; False if the store failed, so that the others are not tried now."""
        admission = progress_admission(run.ref, status.job)
        try:
            data = store.read_start(names.progress_beside(KINDS[status.job.kind].result_key(status.job)), admission.at_most)
        except FedPipeError as error:
            _LOG.info("no progress is read now: %s", error)
            return False
        before = self._read.get(status.job.name)
        value = None if data is None else admission.result(data)
        if isinstance(value, Refused) and not (before and isinstance(before.value, Refused)):
            _LOG.warning("progress is ignored: %s", value, extra={"site": status.job.site, "attempt": status.job.attempt})
        self._read[status.job.name] = _Read(now, value)
        return True


def _may_have_progress(status: JobStatus) -> bool:
    return status.state is JobState.RUNNING and not status.job.kind.is_operators


def _with_progress(status: JobStatus, found: AdmittedProgress | Refused | None, open_sites: Collection[str]) -> JobStatus:
    if found is None or isinstance(found, Refused):
        return status
    fields = found.model_dump(include=set(Progress.model_fields), exclude=set() if status.job.site in open_sites else {"loss"})
    return replace(status, progress=Progress(**fields))


def _sites_that_show_losses(run: Run) -> frozenset[str]:
    """Those whose policy lets the loss of a step leave. The trainers keep to it; what one sends all the same is not shown."""
    return frozenset(site.name for site in run.sites if site.spec.policy.training_losses is TrainingLosses.BY_STEP)
