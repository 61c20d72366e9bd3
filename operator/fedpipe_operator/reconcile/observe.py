"""One look at a run: its jobs through the door, then everything the store says of the current round.

Jobs are read first: whatever a job wrote before it was seen to have ended is then in what is read from the store.
What is written once and never changed is kept, so a look costs one listing, of the round under way, and the objects that are new.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from fedpipe_operator import names
from fedpipe_operator.backend import ACTIVE_STATES, Job, JobStatus
from fedpipe_operator.rounds import Observed, Run, exported_round, job_of
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation, RoundPlan, Verdict
from fedpipe_operator.rounds.status import HISTORY
from fedpipe_operator.store import Store
from fedpipe_operator.store.keys import is_within
from fedpipe_operator.store.objects import WireT, parsed, unreadable
from fedpipe_trainer.contract import (
    EvaluateResult,
    ExportResult,
    Failure,
    FailureReason,
    Manifest,
    Measured,
    Outcome,
    ProfileResult,
    TrainResult,
    Wire,
)

_RESULTS: Final[Mapping[str, type[Manifest]]] = {
    "profile": ProfileResult,
    "train": TrainResult,
    "evaluate": EvaluateResult,
    "export": ExportResult,
}
"""What a job of each kind writes last; an aggregation's is the round's commit."""


def is_interrupted(value: Wire) -> bool:
    """Whether it is the result of a trainer that was asked to end: the one that Kubernetes puts in its place writes it anew."""
    failure = getattr(value, "failure", None)
    return failure is not None and failure.reason is FailureReason.TERMINATED


def _as_kept(value: WireT) -> WireT:
    """As much of an object as a look needs: what a commit says of each weight, and an evaluation of each site, the report reads itself."""
    if isinstance(value, RoundEvaluation):
        return value.model_copy(update={"sites": {}})
    if isinstance(value, RoundCommit):
        worst = sorted(value.truncated_energy.items(), key=lambda pair: pair[1])[-1:]
        return value.model_copy(update={"ranks": {}, "head": {}, "truncated_energy": dict(worst)})
    return value


@dataclass
class ObjectCache:
    """What the last look read, by key. Objects that are written once never need to be read again while looks still ask for them."""

    objects: dict[str, Wire] = field(default_factory=dict)
    is_warm: bool = False
    _asked: set[str] = field(default_factory=set)
    _listed: dict[str, list[str]] = field(default_factory=dict)
    """Keys by folder, of this look."""
    _kept: dict[str, tuple[frozenset[str], list[str]]] = field(default_factory=dict)
    """By folder that jobs of one kind alone write to: those of them that had ended before it was listed, and its keys."""

    def read(self, store: Store, key: str, kind: type[WireT]) -> WireT | None:
        """The object of this key, from memory or from the store; None if there is none. Raises ValueError if it is none of its kind."""
        self._asked.add(key)
        known = self.objects.get(key)
        if isinstance(known, kind):
            return known
        data = store.read(key)
        if data is None:
            return None
        value = _as_kept(parsed(data, kind))
        if not is_interrupted(value):
            self.objects[key] = value
        return value

    def listing(self, store: Store, folder: str) -> Sequence[str]:
        """The keys in a folder, as they are at this look."""
        if folder not in self._listed:
            self._listed[folder] = store.list(folder)
        return self._listed[folder]

    def listing_of(self, store: Store, folder: str, writers: Mapping[str, JobStatus]) -> Sequence[str]:
        """The keys in a folder that these jobs alone write to: listed anew while one of them may have written since."""
        ended, keys = self._kept.get(folder, (frozenset[str](), []))
        if folder not in self._kept or writers.keys() - ended:
            ended = frozenset(name for name, seen in writers.items() if seen.state not in ACTIVE_STATES)
            keys = store.list(folder)
            self._kept[folder] = ended, keys
        return keys

    def begin(self) -> None:
        """List anew, also where the last look was broken off."""
        self._listed = {}

    def end(self) -> None:
        """Let go of what this look did not ask for, so that a long run keeps no more than a look needs."""
        self.objects = {key: value for key, value in self.objects.items() if key in self._asked}
        self._asked, self._listed, self.is_warm = set(), {}, True


def observe(run: Run, jobs: Mapping[str, JobStatus], store: Store, cache: ObjectCache, resumed_at: float) -> Observed:
    """Everything `decide` needs to know of this run: of earlier rounds what came of them, of the current one every attempt.

    Profiles are for the next plan: once that is made, nobody asks for them.
    """
    cache.begin()
    ours = {name: seen for name, seen in jobs.items() if _is_ours(run, seen)}
    evaluations = _evaluations(run, store, cache)
    round_ = max(evaluations, default=-1) + 1
    listed = _listed(round_, ours, store, cache)
    keys = frozenset(key for keys in listed.values() for key in keys)
    rounds = _rounds_kept(round_, exported_round(run.spec, evaluations))
    reader = _StoreReader(run, store, cache, list(listed), keys, names.numbers_in(keys))
    plans = _shortened(reader.by_round(names.round_plan, RoundPlan, rounds), cache)
    sites = {site.name for site in run.sites} | (set(plans[max(plans)].plans) if plans else set())
    seen = Observed(
        resumed_at=resumed_at,
        jobs=ours,
        reported=frozenset(name for name, seen in ours.items() if reader.has_reported(seen)),
        profiles={} if max(round_, 1) in plans else reader.by_site(names.profile_result, ProfileResult, sites),
        plans=plans,
        commits=reader.by_round(names.round_commit, RoundCommit, rounds),
        evaluations=evaluations,
        updates=reader.by_site(partial(names.update_result, round_), TrainResult, sites),
        verdicts=reader.by_site(partial(names.update_verdict, round_), Verdict, sites),
        site_evaluations=reader.by_site(partial(names.evaluation_result, round_), EvaluateResult, sites),
        exports=reader.attempts(names.export_result, ExportResult),
    )
    cache.end()
    return seen


def _evaluations(run: Run, store: Store, cache: ObjectCache) -> dict[int, RoundEvaluation]:
    """By round, from the base's on: they come one after the other, so the first that is missing is the round under way."""
    found: dict[int, RoundEvaluation] = {}
    for round_ in range(run.spec.rounds.count + 1):
        key = names.round_evaluation(round_)
        if cache.is_warm and key not in cache.objects and key not in cache.listing(store, names.round_folder(round_)):
            break  # it is the round under way, whose folder is listed anyway
        evaluation = _object(cache, store, key, RoundEvaluation)
        if evaluation is None:
            break
        found[round_] = evaluation
    return found


def _listed(round_: int, jobs: Mapping[str, JobStatus], store: Store, cache: ObjectCache) -> dict[str, Sequence[str]]:
    """By folder, the keys of every attempt that still counts; the base's evaluation, round 0, goes with the plan of round 1."""
    rounds = [names.round_folder(one) for one in sorted({round_, max(round_, 1)})]
    of = {kind: {name: seen for name, seen in jobs.items() if seen.job.kind == kind} for kind in ("profile", "export")}
    return {
        "profile": cache.listing_of(store, "profile", of["profile"]),
        **{folder: cache.listing(store, folder) for folder in rounds},
        "export": cache.listing_of(store, "export", of["export"]),
    }


def _rounds_kept(round_: int, exported: int) -> list[int]:
    """The rounds whose plan and commit are looked at: the one under way, those of the status's history, the first and the best."""
    return sorted({1, exported, *range(max(1, round_ - HISTORY - 1), max(round_, 1) + 1)} - {0})


def _shortened(plans: dict[int, RoundPlan], cache: ObjectCache) -> dict[int, RoundPlan]:
    """Of every round but the newest, what is told of it later: the plan of each site is the larger part of what a long run would keep."""
    for round_ in sorted(plans)[:-1]:
        if plans[round_].plans:
            fixed_by_the_first: dict[str, object] = {} if round_ == 1 else {"weights": {}, "head": {}}
            plans[round_] = plans[round_].model_copy(update={"plans": {}, **fixed_by_the_first})
            cache.objects[names.round_plan(round_)] = plans[round_]
    return plans


def _object(cache: ObjectCache, store: Store, key: str, kind: type[WireT]) -> WireT | None:
    """An object that the operator itself wrote."""
    try:
        return cache.read(store, key, kind)
    except ValueError as error:
        raise unreadable(key, error) from error


def _result_key(job: Job) -> str:
    return names.result_of(job.kind, site=job.site, round_=job.round, attempt=job.attempt)


def _is_ours(run: Run, seen: JobStatus) -> bool:
    """A door may serve several runs; a job's name says whose it is."""
    job = seen.job
    return job_of(run, job.kind, site=job.site, round_=job.round, attempt=job.attempt).name == job.name


@dataclass(frozen=True)
class _StoreReader:
    """One listing, and how the keys in it are read."""

    run: Run
    store: Store
    cache: ObjectCache
    folders: list[str]
    """What was listed."""
    keys: frozenset[str]
    numbers: list[int]

    def by_round(self, key_of: Callable[[int], str], kind: type[WireT], rounds: Iterable[int]) -> dict[int, WireT]:
        """By round."""
        keys = {round_: key for round_ in rounds if not self._is_absent(key := key_of(round_))}
        found = ((round_, _object(self.cache, self.store, key, kind)) for round_, key in keys.items())
        return {round_: value for round_, value in found if value is not None}

    def by_site(self, key_of: Callable[[str, int], str], kind: type[WireT], sites: Iterable[str]) -> dict[str, dict[int, WireT]]:
        """By site and attempt. A site that is gone may have left something before it went."""
        return {site: self.attempts(partial(key_of, site), kind) for site in sorted(sites)}

    def has_reported(self, seen: JobStatus) -> bool:
        """Whether a job that is at work has left its result; that of an interrupted trainer is not its last word."""
        if seen.exit_code is not None or seen.state not in ACTIVE_STATES:
            return False
        key = _result_key(seen.job)
        if not any(is_within(key, folder) for folder in self.folders):
            return self.store.size(key) is not None
        kind = _RESULTS.get(seen.job.kind)
        value = self._read(key, kind) if kind else None
        return key in self.keys and not (value is not None and is_interrupted(value))

    def _is_absent(self, key: str) -> bool:
        """Whether the folder of this key was listed and it was not there."""
        return key not in self.keys and any(is_within(key, folder) for folder in self.folders)

    def attempts(self, key_of: Callable[[int], str], kind: type[WireT]) -> dict[int, WireT]:
        """By attempt. One that was killed left nothing, so there may be gaps, and interrupted ones make them as wide as they like."""
        return {attempt: value for attempt in self.numbers if (value := self._read(key_of(attempt), kind)) is not None}

    def _read(self, key: str, kind: type[WireT]) -> WireT | None:
        try:
            return self.cache.read(self.store, key, kind) if key in self.keys else None
        except ValueError as error:
            if "failure" not in kind.model_fields:
                raise unreadable(key, error) from error
            return kind.model_validate(self._failed(f"its result is {error}: does its trainer have the version of this operator?"))

    def _failed(self, message: str) -> dict[str, Any]:
        """What a trainer whose result cannot be read is taken to have said: sites are guests, it costs them the attempt and no more."""
        failure = Failure(reason=FailureReason.UNEXPECTED, message=message)
        heading = {"run": self.run.ref, "site": "", "round": 0, "attempt": 0, "measured": Measured()}
        return heading | {"outcome": Outcome.FAILED, "failure": failure}
