"""One look at a run: its jobs through the door, then everything the store says of the current round.

Jobs are read first: whatever a job wrote before it was seen to have ended is then in what is read from the store.
What is written once and never changed is kept, so a look costs one listing and the objects that are new.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedpipe_operator import names
from fedpipe_operator.doors import SeenJob
from fedpipe_operator.objects import WireT, parsed, unreadable
from fedpipe_operator.records import RoundEvaluation, RoundManifest, RoundPlan, Verdict
from fedpipe_operator.rounds import Run, Seen, job_of
from fedpipe_operator.store import Store
from fedpipe_trainer.contract import (
    EvaluationManifest,
    ExportManifest,
    Failure,
    FailureReason,
    Measured,
    Outcome,
    ProfileManifest,
    UpdateManifest,
    Wire,
)

KEPT = 256
"""Objects kept in memory; more than a round has with 64 sites, and small whatever the model's size."""


@dataclass
class Memory:
    """What was read before, by key. Objects that are written once never need to be read again."""

    objects: dict[str, Wire] = field(default_factory=dict)

    def read(self, store: Store, key: str, kind: type[WireT]) -> WireT | None:
        """The object of this key, from memory or from the store; None if there is none. Raises ValueError if it is none of its kind."""
        known = self.objects.get(key)
        if isinstance(known, kind):
            return known
        data = store.read(key)
        if data is None:
            return None
        value = parsed(data, kind)
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
    look = _Look(run, store, memory, keys, names.numbers_in(keys))
    evaluations = look.by_round(names.round_evaluation, RoundEvaluation)
    round_ = max(evaluations, default=-1) + 1
    return Seen(
        resumed_at=resumed_at,
        jobs={name: seen for name, seen in jobs.items() if _is_ours(run, seen)},
        profiles=look.by_site(names.profile_manifest, ProfileManifest),
        plans=look.by_round(names.round_plan, RoundPlan),
        commits=look.by_round(names.round_manifest, RoundManifest),
        evaluations=evaluations,
        updates=look.by_site(partial(names.update_manifest, round_), UpdateManifest),
        verdicts=look.by_site(partial(names.update_verdict, round_), Verdict),
        site_evaluations=look.by_site(partial(names.evaluation_manifest, round_), EvaluationManifest),
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
    numbers: list[int]

    def by_round(self, key_of: Callable[[int], str], kind: type[WireT]) -> dict[int, WireT]:
        """By round, from the run's start to where it is."""
        return {
            round_: value for round_ in range(self.run.spec.rounds.count + 1) if (value := self._read(key_of(round_), kind)) is not None
        }

    def by_site(self, key_of: Callable[[str, int], str], kind: type[WireT]) -> dict[str, dict[int, WireT]]:
        """By site and attempt."""
        return {site.name: self.attempts(partial(key_of, site.name), kind) for site in self.run.sites}

    def attempts(self, key_of: Callable[[int], str], kind: type[WireT]) -> dict[int, WireT]:
        """By attempt. One that was killed left nothing, so there may be gaps, and interrupted ones make them as wide as they like."""
        return {attempt: value for attempt in self.numbers if (value := self._read(key_of(attempt), kind)) is not None}

    def _read(self, key: str, kind: type[WireT]) -> WireT | None:
        try:
            return self.memory.read(self.store, key, kind) if key in self.keys else None
        except ValueError as error:
            if "failure" not in kind.model_fields:
                raise unreadable(key, error) from error
            return kind.model_validate(self._failed(f"its manifest is {error}: does its trainer have the version of this operator?"))

    def _failed(self, message: str) -> dict[str, Any]:
        """What a trainer whose manifest cannot be read is taken to have said: sites are guests, it costs them the attempt and no more."""
        failure = Failure(reason=FailureReason.UNEXPECTED, message=message)
        heading = {"run": self.run.ref, "site": "", "round": 0, "attempt": 0, "measured": Measured()}
        return heading | {"outcome": Outcome.FAILED, "failure": failure}
