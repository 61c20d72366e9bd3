"""What the operator has just done to Jobs, until the watch tells of it too: so that no look acts on what is out of date."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fedpipe_operator.cluster.objects import KubeJob

_HELD_SECONDS: Final = 60.0
"""After this long, what the watch says is believed whatever we did: it may have been undone by others."""

_Name = tuple[str, str]


@dataclass
class Expectations:
    """Jobs that were created, given up or deleted a moment ago. Safe for several threads."""

    clock: Callable[[], float]
    _jobs: dict[_Name, tuple[float, KubeJob]] = field(default_factory=dict)
    """The oldest first."""
    _of: dict[_Name, dict[_Name, KubeJob]] = field(default_factory=dict)
    """The same Jobs by namespace and uid of their run, and by namespace and site."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def created(self, job: KubeJob) -> None:
        """A Job that the watch has yet to tell of."""
        self._note(job)

    def withdrawn(self, job: KubeJob) -> None:
        """A Job that could not be created after all."""
        with self._lock:
            self._drop((job.namespace, job.job.name))

    def given_up(self, job: KubeJob, reason: str, message: str) -> None:
        """A Job whose pod could not start."""
        self._note(replace(job, given_up=True, reason=reason, message=message))

    def deleted(self, job: KubeJob) -> None:
        """A Job that goes as soon as its pods have gone."""
        self._note(replace(job, is_deleting=True))

    def of_run(self, namespace: str, uid: str, watched: Mapping[str, KubeJob]) -> dict[str, KubeJob]:
        """The run's Jobs by name: as the watch has them, and as we know better."""
        return self._over(watched, (namespace, f"uid {uid}"))

    def at_site(self, namespace: str, site: str, watched: Mapping[str, KubeJob]) -> dict[str, KubeJob]:
        """All Jobs at a site by name, likewise."""
        return self._over(watched, (namespace, f"site {site}"))

    def _over(self, watched: Mapping[str, KubeJob], group: _Name) -> dict[str, KubeJob]:
        jobs = dict(watched)
        with self._lock:
            self._drop_old()
            mine = list(self._of.get(group, {}).values())
        for job in mine:
            if _says_more(job, jobs.get(job.job.name)):
                jobs[job.job.name] = job
        return jobs

    def _note(self, job: KubeJob) -> None:
        name = (job.namespace, job.job.name)
        with self._lock:
            self._drop_old()
            self._drop(name)
            self._jobs[name] = self.clock(), job
            for group in _groups(job):
                self._of.setdefault(group, {})[name] = job

    def _drop_old(self) -> None:
        before = self.clock() - _HELD_SECONDS
        while self._jobs and next(iter(self._jobs.values()))[0] <= before:
            self._drop(next(iter(self._jobs)))

    def _drop(self, name: _Name) -> None:
        if name not in self._jobs:
            return
        for group in _groups(self._jobs.pop(name)[1]):
            del self._of[group][name]
            if not self._of[group]:
                del self._of[group]


def _groups(job: KubeJob) -> tuple[_Name, _Name]:
    return (job.namespace, f"uid {job.run_uid}"), (job.namespace, f"site {job.job.site}")


def _says_more(ours: KubeJob, watched: KubeJob | None) -> bool:
    """Whether what we did is news to the watch. A Job that we deleted and it does not know is gone."""
    if watched is None or watched.created_at > ours.created_at:
        return watched is None and not ours.is_deleting
    return (ours.is_deleting and not watched.is_deleting) or (ours.given_up and not watched.given_up and not watched.ended)
