"""Expectations: what the operator has just done to Jobs, until the watch reports it, so that no reconcile acts on a stale cache."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fedpipe_operator.cluster.objects import KubeJob

_EXPIRY_SECONDS: Final = 60.0
"""After this time the watch is right whatever the operator did: somebody else may have undone it."""

_Name = tuple[str, str]


@dataclass
class Expectations:
    """Jobs that the operator created, gave up or deleted a moment ago. Thread-safe."""

    clock: Callable[[], float]
    """Seconds of a clock that never jumps: a Job must not be forgotten before the watch tells of it, nor remembered for an hour."""
    _jobs: dict[_Name, tuple[float, KubeJob]] = field(default_factory=dict)
    """Oldest first."""
    _by_group: dict[_Name, dict[_Name, KubeJob]] = field(default_factory=dict)
    """The same Jobs by namespace and uid of their run, and by namespace and site."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def created(self, job: KubeJob) -> None:
        """The Job was created; the watch does not know it yet."""
        self._record(job)

    def unanswered(self, job: KubeJob) -> None:
        """It is unknown whether the Job was created: it takes its site's place, and its run may ask for it again."""
        self._record(job, groups=_groups(job)[1:])

    def withdrawn(self, job: KubeJob) -> None:
        """The Job could not be created after all."""
        with self._lock:
            self._drop((job.namespace, job.name))

    def given_up(self, job: KubeJob, reason: str, message: str, exit_code: int | None = None) -> None:
        """The Job was ended because its pod could not start, or would have gone on after its task, which ended with this exit code."""
        self._record(replace(job, given_up=True, reason=reason, message=message, exit_code=exit_code))

    def deleted(self, job: KubeJob) -> None:
        """The Job was deleted; it disappears once its pods have."""
        self._record(replace(job, is_deleting=True))

    def of_run(self, namespace: str, uid: str, watched: Mapping[str, KubeJob]) -> dict[str, KubeJob]:
        """The run's Jobs by name: as the watch has them, corrected by what is expected."""
        return self._corrected(watched, (namespace, f"uid {uid}"), lambda job: job.job.name)

    def at_site(self, namespace: str, site: str, watched: Mapping[str, KubeJob]) -> dict[str, KubeJob]:
        """All Jobs at a site by their names in Kubernetes, corrected likewise: those within their runs may be the same."""
        return self._corrected(watched, (namespace, f"site {site}"), lambda job: job.name)

    def _corrected(self, watched: Mapping[str, KubeJob], group: _Name, name_of: Callable[[KubeJob], str]) -> dict[str, KubeJob]:
        jobs = dict(watched)
        with self._lock:
            self._drop_old()
            expected = list(self._by_group.get(group, {}).values())
        for job in expected:
            if _is_newer(job, jobs.get(name_of(job))):
                jobs[name_of(job)] = job
        return jobs

    def _record(self, job: KubeJob, groups: Sequence[_Name] | None = None) -> None:
        name = (job.namespace, job.name)
        with self._lock:
            self._drop_old()
            self._drop(name)
            self._jobs[name] = self.clock(), job
            for group in _groups(job) if groups is None else groups:
                self._by_group.setdefault(group, {})[name] = job

    def _drop_old(self) -> None:
        before = self.clock() - _EXPIRY_SECONDS
        while self._jobs and next(iter(self._jobs.values()))[0] <= before:
            self._drop(next(iter(self._jobs)))

    def _drop(self, name: _Name) -> None:
        if name not in self._jobs:
            return
        for group in _groups(self._jobs.pop(name)[1]):
            self._by_group.get(group, {}).pop(name, None)
            if not self._by_group.get(group, True):
                del self._by_group[group]


def _groups(job: KubeJob) -> tuple[_Name, _Name]:
    return (job.namespace, f"uid {job.run_uid}"), (job.namespace, f"site {job.job.site}")


def _is_newer(ours: KubeJob, watched: KubeJob | None) -> bool:
    """Whether the watch does not show yet what the operator did. A deleted Job that the watch does not know is gone."""
    if watched is None or watched.created_at > ours.created_at:
        return watched is None and not ours.is_deleting
    return (ours.is_deleting and not watched.is_deleting) or (ours.given_up and not watched.given_up and not watched.ended)
