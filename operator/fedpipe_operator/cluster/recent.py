"""What the operator has just done to Jobs, until the watch tells of it too: so that no look acts on what is out of date."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fedpipe_operator.cluster.seen import KubeJob

_HELD_SECONDS: Final = 60.0
"""After this long, what the watch says is believed whatever we did: it may have been undone by others."""


@dataclass
class Recent:
    """Jobs that were created, given up or deleted a moment ago. Safe for several threads."""

    clock: Callable[[], float]
    _jobs: dict[tuple[str, str], tuple[float, KubeJob]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def created(self, job: KubeJob) -> None:
        """A Job that the watch has yet to tell of."""
        self._note(job)

    def withdrawn(self, job: KubeJob) -> None:
        """A Job that could not be created after all."""
        with self._lock:
            self._jobs.pop((job.namespace, job.job.name), None)

    def given_up(self, job: KubeJob, reason: str, message: str) -> None:
        """A Job whose pod could not start."""
        self._note(replace(job, given_up=True, reason=reason, message=message))

    def deleted(self, job: KubeJob) -> None:
        """A Job that goes as soon as its pods have gone."""
        self._note(replace(job, is_deleting=True))

    def over(self, watched: Mapping[str, KubeJob], wanted: Callable[[KubeJob], bool]) -> dict[str, KubeJob]:
        """The wanted Jobs by name: as the watch has them, and as we know better."""
        now, jobs = self.clock(), dict(watched)
        with self._lock:
            self._jobs = {key: (at, job) for key, (at, job) in self._jobs.items() if now - at < _HELD_SECONDS}
            mine = [job for _, job in self._jobs.values() if wanted(job)]
        for job in mine:
            known = jobs.get(job.job.name)
            if _says_more(job, known):
                jobs[job.job.name] = job
        return jobs

    def _note(self, job: KubeJob) -> None:
        with self._lock:
            self._jobs[job.namespace, job.job.name] = (self.clock(), job)


def _says_more(ours: KubeJob, watched: KubeJob | None) -> bool:
    """Whether what we did is news to the watch. A Job that we deleted and it does not know is gone."""
    if watched is None or watched.created_at > ours.created_at:
        return watched is None and not ours.is_deleting
    return (ours.is_deleting and not watched.is_deleting) or (ours.given_up and not watched.given_up and not watched.ended)
