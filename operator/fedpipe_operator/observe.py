"""One look at a run: its jobs through the door, then everything the store says of the current round.

Jobs are read first: whatever a job wrote before it was seen to have ended is then in what is read from the store.
What is written once and never changed is kept, so a look costs one listing and the objects that are new.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedpipe_operator import names
from fedpipe_operator.doors import AT_WORK, Job, SeenJob
from fedpipe_operator.objects import WireT, parsed, unreadable
from fedpipe_operator.records import RoundEvaluation, RoundManifest, RoundPlan, Verdict
from fedpipe_operator.rounds import Run, Seen, exported_round, job_of
from fedpipe_operator.rounds.status import HISTORY
from fedpipe_operator.store import Store
from fedpipe_operator.store.keys import is_within
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


@dataclass
class Memory:
    """What the last look read, by key. Objects that are written once never need to be read again while looks still ask for them."""

    objects: dict[str, Wire] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)

    def read(self, store: Store, key: str, kind: type[WireT]) -> WireT | None:
        """The object of this key, from memory or from the store; None if there is none. Raises ValueError if it is none of its kind."""
        self._asked.add(key)
        known = self.objects.get(key)
        if isinstance(known, kind):
            return known
        data = store.read(key)
        if data is None:
            return None
        value = parsed(data, kind)
        self.objects[key] = value
        return value

    def end_look(self) -> None:
        """Let go of what this look did not ask for, so that a long run keeps no more than a look needs."""
        self.objects = {key: value for key, value in self.objects.items() if key in self._asked}
        self._asked = set()


def observe(run: Run, jobs: Mapping[str, SeenJob], store: Store, memory: Memory, resumed_at: float) -> Seen:
    """Everything `decide` needs to know of this run: of earlier rounds what came of them, of the current one every attempt."""
    evaluations = _evaluations(run, store, memory)
    round_ = max(evaluations, default=-1) + 1
    folders = _folders(round_)
    keys = frozenset(key for folder in folders for key in store.list(folder))
    rounds = _rounds_kept(round_, exported_round(run.spec, evaluations))
    look = _Look(run, store, memory, folders, keys, names.numbers_in(keys))
    plans = look.by_round(names.round_plan, RoundPlan, rounds)
    sites = {site.name for site in run.sites} | (set(plans[max(plans)].plans) if plans else set())
    ours = {name: seen for name, seen in jobs.items() if _is_ours(run, seen)}
    seen = Seen(
        resumed_at=resumed_at,
        jobs=ours,
        reported=frozenset(name for name, seen in ours.items() if look.has_reported(seen)),
        profiles=look.by_site(names.profile_manifest, ProfileManifest, sites),
        plans=plans,
        commits=look.by_round(names.round_manifest, RoundManifest, rounds),
        evaluations=evaluations,
        updates=look.by_site(partial(names.update_manifest, round_), UpdateManifest, sites),
        verdicts=look.by_site(partial(names.update_verdict, round_), Verdict, sites),
        site_evaluations=look.by_site(partial(names.evaluation_manifest, round_), EvaluationManifest, sites),
        exports=look.attempts(names.export_manifest, ExportManifest),
    )
    memory.end_look()
    return seen


def _evaluations(run: Run, store: Store, memory: Memory) -> dict[int, RoundEvaluation]:
    """By round, from the base's on: they come one after the other, so the first that is missing is the round under way."""
    found: dict[int, RoundEvaluation] = {}
    for round_ in range(run.spec.rounds.count + 1):
        evaluation = _object(memory, store, names.round_evaluation(round_), RoundEvaluation)
        if evaluation is None:
            break
        found[round_] = evaluation
    return found


def _folders(round_: int) -> list[str]:
    """Where a look finds every attempt that still counts; the base's evaluation, round 0, goes with the plan of round 1."""
    return ["profile", *(names.round_folder(one) for one in sorted({round_, max(round_, 1)})), "export"]


def _rounds_kept(round_: int, exported: int) -> list[int]:
    """The rounds whose plan and commit are looked at: the one under way, those of the status's history, the first and the best."""
    return sorted({1, exported, *range(max(1, round_ - HISTORY - 1), max(round_, 1) + 1)} - {0})


def _object(memory: Memory, store: Store, key: str, kind: type[WireT]) -> WireT | None:
    """An object that the operator itself wrote."""
    try:
        return memory.read(store, key, kind)
    except ValueError as error:
        raise unreadable(key, error) from error


def _manifest_key(job: Job) -> str:
    return names.manifest_of(job.kind, site=job.site, round_=job.round, attempt=job.attempt)


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
    folders: list[str]
    """What was listed."""
    keys: frozenset[str]
    numbers: list[int]

    def by_round(self, key_of: Callable[[int], str], kind: type[WireT], rounds: Iterable[int]) -> dict[int, WireT]:
        """By round."""
        found = ((round_, _object(self.memory, self.store, key_of(round_), kind)) for round_ in rounds)
        return {round_: value for round_, value in found if value is not None}

    def by_site(self, key_of: Callable[[str, int], str], kind: type[WireT], sites: Iterable[str]) -> dict[str, dict[int, WireT]]:
        """By site and attempt. A site that is gone may have left something before it went."""
        return {site: self.attempts(partial(key_of, site), kind) for site in sorted(sites)}

    def has_reported(self, seen: SeenJob) -> bool:
        """Whether a job that is at work has left its manifest."""
        if seen.exit_code is not None or seen.state not in AT_WORK:
            return False
        key = _manifest_key(seen.job)
        was_listed = any(is_within(key, folder) for folder in self.folders)
        return key in self.keys if was_listed else self.store.size(key) is not None

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
