"""One look at a run: its jobs through the door, then everything the store says of the current round.

Jobs are read first: whatever a job wrote before it was seen to have ended is then in what is read from the store.
What is written once and never changed is kept, so a look costs one listing and the objects that are new.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from fedpipe_operator import names
from fedpipe_operator.doors import SeenJob
from fedpipe_operator.records import RoundEvaluation, RoundManifest, RoundPlan, Verdict
from fedpipe_operator.rounds import Run, Seen, job_of
from fedpipe_operator.store import Store
from fedpipe_trainer.contract import EvaluationManifest, ExportManifest, ProfileManifest, UpdateManifest, Wire

WireT = TypeVar("WireT", bound=Wire)
KEPT = 256
"""Objects kept in memory; more than a round has with 64 sites, and small whatever the model's size."""


@dataclass
class Memory:
    """What was read before, by key. Objects that are written once never need to be read again."""

    objects: dict[str, Wire] = field(default_factory=dict)

    def read(self, store: Store, key: str, kind: type[WireT]) -> WireT | None:
        """The object of this key, from memory or from the store; None if there is none."""
        known = self.objects.get(key)
        if isinstance(known, kind):
            return known
        data = store.read(key)
        if data is None:
            return None
        value = kind.model_validate_json(data)
        self._keep(key, value)
        return value

    def _keep(self, key: str, value: Wire) -> None:
        """Keep it, and let go of what has been kept longest."""
        self.objects[key] = value
        while len(self.objects) > KEPT:
            del self.objects[next(iter(self.objects))]


def observe(run: Run, jobs: Mapping[str, SeenJob], store: Store, memory: Memory, resumed_at: float) -> Seen:
    """Everything `decide` needs to know of this run."""
    keys = frozenset(store.list())
    look = _Look(run, store, memory, keys)
    evaluations = look.by_round(names.round_evaluation, RoundEvaluation)
    round_ = max(evaluations, default=-1) + 1
    return Seen(
        resumed_at=resumed_at,
        jobs={name: seen for name, seen in jobs.items() if _is_ours(run, seen)},
        profiles=look.by_site(names.profile_manifest, ProfileManifest),
        plans=look.by_round(names.round_plan, RoundPlan),
        commits=look.by_round(names.round_manifest, RoundManifest),
        evaluations=evaluations,
        updates=look.by_site(lambda site, attempt: names.update_manifest(round_, site, attempt), UpdateManifest),
        verdicts=look.by_site(lambda site, attempt: names.update_verdict(round_, site, attempt), Verdict),
        site_evaluations=look.by_site(lambda site, attempt: names.evaluation_manifest(round_, site, attempt), EvaluationManifest),
        exports=look.attempts(names.export_manifest, ExportManifest),
    )


def _is_ours(run: Run, seen: SeenJob) -> bool:
    """A door may serve several runs; a job's name says whose it is."""
    job = seen.job
    return job_of(run, job.kind, site=job.site, round_=job.round, attempt=job.attempt).name == job.name


@dataclass(frozen=True)
class _Look:
    """One listing, and how the keys in it are read."""

    run: Run
    store: Store
    memory: Memory
    keys: frozenset[str]

    def by_round(self, key_of: Callable[[int], str], kind: type[WireT]) -> dict[int, WireT]:
        """By round, from the run's start to where it is."""
        return {
            round_: value for round_ in range(self.run.spec.rounds.count + 1) if (value := self._read(key_of(round_), kind)) is not None
        }

    def by_site(self, key_of: Callable[[str, int], str], kind: type[WireT]) -> dict[str, dict[int, WireT]]:
        """By site and attempt."""
        return {site.name: self.attempts(lambda attempt, name=site.name: key_of(name, attempt), kind) for site in self.run.sites}  # type: ignore[misc] # the lambda's default binds the loop's variable

    def attempts(self, key_of: Callable[[int], str], kind: type[WireT]) -> dict[int, WireT]:
        """By attempt. Attempts are made one after the other, but one that was killed leaves a gap."""
        found: dict[int, WireT] = {}
        for attempt in range(len(self.keys)):
            value = self._read(key_of(attempt), kind)
            if value is not None:
                found[attempt] = value
            elif attempt > max(found, default=0) + self.run.spec.rounds.attempts:
                break
        return found

    def _read(self, key: str, kind: type[WireT]) -> WireT | None:
        return self.memory.read(self.store, key, kind) if key in self.keys else None
