"""Observe a run: its jobs from the backend, then everything its store holds of the current round.

Jobs are read first: whatever a job wrote before it was seen to have ended is then in what is read from the store. Objects that are
written once and never change are cached, so an observation costs one listing of the current round, until the last round is evaluated
one of that round as well, and the objects that are new.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, cast

from fedpipe_operator import names
from fedpipe_operator.admission import RefusalReason, Refused
from fedpipe_operator.api import primary_metric
from fedpipe_operator.backend import ACTIVE_STATES, JobStatus, TaskKind
from fedpipe_operator.errors import UserError
from fedpipe_operator.memory_budget import SITE_BYTES, Holding, bytes_in_memory, bytes_of
from fedpipe_operator.rounds import Observed, Run, exported_round, job_of
from fedpipe_operator.rounds.admitting import Admissible, Admission, Admit
from fedpipe_operator.rounds.kinds import KINDS
from fedpipe_operator.rounds.observed import EvaluationSummary, PlanSummary, summarize_commit, summarize_evaluation, summarize_plan
from fedpipe_operator.rounds.records import ExpiredProfiles, OutOfReach, RoundCommit, RoundEvaluation, RoundPlan, Verdict
from fedpipe_operator.rounds.revision import require_continued
from fedpipe_operator.rounds.status import HISTORY
from fedpipe_operator.store import Store
from fedpipe_operator.store.objects import WireT, decode_object, read_object, unreadable_error
from fedpipe_operator.store.protocol import is_in_folder
from fedpipe_trainer.contract import FailureReason

Summary = TypeVar("Summary")
Admitted = TypeVar("Admitted", bound=Admissible)


def is_interrupted(value: object) -> bool:
    """Whether it is the result of a trainer that was terminated: the pod that replaces it will overwrite the result."""
    failure = getattr(value, "failure", None)
    return failure is not None and failure.reason is FailureReason.TERMINATED


@dataclass
class ObjectCache:
    """What the last observation read, by key. An object that is written once is read once, as long as observations still need it."""

    objects: dict[str, object] = field(default_factory=dict)
    """Values, or their summaries."""
    holding: Holding = field(default_factory=Holding)
    """What they take of the operator's memory."""
    is_warm: bool = False
    """Whether an observation was completed."""
    _used: set[str] = field(default_factory=set)
    _listed: dict[str, list[str]] = field(default_factory=dict)
    """Keys by folder, of the current observation."""
    _by_writers: dict[str, tuple[frozenset[str], list[str]]] = field(default_factory=dict)
    """By folder that only jobs of one kind write to: those that had ended when it was listed, and its keys."""

    def read(self, store: Store, key: str, kind: type[WireT]) -> WireT | None:
        """The object of this key, cached or from the store; None if there is none. Raises ValueError if it is not of this kind."""
        self._used.add(key)
        known = self.objects.get(key)
        if isinstance(known, kind):
            return known
        data = store.read(key)
        if data is None:
            return None
        self._hold(key, bytes_in_memory(data))
        value = self.objects[key] = decode_object(data, kind)
        return value

    def read_once(self, store: Store, key: str, kind: type[WireT]) -> WireT | None:
        """An object of the operator from the store, which is not kept; it counts until the end of the next observation.

        Raises:
            UserError: as `store.objects.read_object` does; or it does not fit.
        """
        return read_object(store, key, kind, lambda data: self._hold(f"{key}, once", bytes_in_memory(data)))

    def admit(self, store: Store, key: str, admit: Admit[Admitted], site: str, *, may_change: bool = False) -> Admitted | Refused | None:
        """What a site wrote under this key, admitted or refused; None if there is nothing. What was seen once stays.

        Args:
            store: of the run.
            key: of the result.
            admit: how it is admitted.
            site: whose it is; empty for an export.
            may_change: whether its job is active: then the result of an interrupted trainer is read again.
        """
        self._used.add(key)
        known = self.objects.get(key)
        if known is None:
            data = store.read_start(key, admit.at_most)
            known = None if data is None else self._admit(key, data, admit, site)
            if known is not None and not (may_change and is_interrupted(known)):
                self.objects[key] = known
        return cast("Admitted | Refused | None", known)

    def _admit(self, key: str, data: bytes, admit: Admit[Admitted], site: str) -> Admitted | Refused:
        """What a site wrote, if it fits beside what the site wrote before."""
        size, most = bytes_in_memory(data), SITE_BYTES + 2 * admit.at_most
        held = self.holding.of_site(site)
        if held + size > most:
            found = f"what site {site} sent takes {held + size} bytes of the operator's memory together, expected at most {most}"
            return Refused(RefusalReason.TOO_LARGE, found)
        self._hold(key, size, site)
        return admit.result(data)

    def _hold(self, key: str, size: int, site: str = "") -> None:
        """Hold so much for an object. A run that cannot leaves what it has to the others of its namespace."""
        try:
            self.holding.hold(key, size, site)
        except UserError:
            self.clear()
            raise

    def read_summary(self, store: Store, key: str, kind: type[WireT], summarize: Callable[[WireT], Summary]) -> Summary | None:
        """The summary of this key's object, which replaces the object in the cache; None if there is none. Raises ValueError likewise."""
        known = self.objects.get(key)
        if known is None or isinstance(known, kind):
            value = self.read(store, key, kind)
            if value is None:
                return None
            self.objects[key] = known = summarize(value)
            self._hold(key, bytes_of(known))
        self._used.add(key)
        return cast("Summary", known)

    def clear(self) -> None:
        """Forget everything: the next observation reads it again."""
        self.objects, self.is_warm = {}, False
        self.holding.keep(())

    def listing(self, store: Store, folder: str) -> Sequence[str]:
        """The keys in a folder, listed once per observation."""
        if folder not in self._listed:
            self._listed[folder] = store.list(folder)
        return self._listed[folder]

    def listing_of(self, store: Store, folder: str, writers: Mapping[str, JobStatus]) -> Sequence[str]:
        """The keys in a folder that only these jobs write to: listed again while one of them may have written since."""
        ended, keys = self._by_writers.get(folder, (frozenset[str](), []))
        if folder not in self._by_writers or writers.keys() - ended:
            ended = frozenset(name for name, status in writers.items() if status.state not in ACTIVE_STATES)
            keys = store.list(folder)
            self._by_writers[folder] = ended, keys
        return keys

    def begin(self) -> None:
        """Begin an observation; the last one may have been interrupted by an error."""
        self._listed = {}

    def end(self) -> None:
        """Drop what this observation did not use, so that a long run keeps no more than an observation needs."""
        self.objects = {key: value for key, value in self.objects.items() if key in self._used}
        self.holding.keep(self.objects)
        self._used, self._listed, self.is_warm = set(), {}, True


def observe(run: Run, jobs: Mapping[str, JobStatus], store: Store, cache: ObjectCache, resumed_at: float) -> Observed:
    """Everything `decide` needs to know of this run: the outcome of earlier rounds, and every attempt of the current one.

    Profiles are read for the next plan only.

    Raises:
        UserError: as `require_continued` does; or what reading raises.
    """
    cache.begin()
    own_jobs = {name: status for name, status in jobs.items() if _belongs_to(run, status)}
    evaluations = _evaluations(run, store, cache)
    listed = _listed_rounds(store, cache, max(evaluations, default=-1) + 1)
    round_ = max(listed)
    reader = _reader(run, own_jobs, store, cache, listed)
    rounds = _observed_rounds(round_, exported_round(run.spec, evaluations))
    plan, plans = _plans(reader, rounds)
    require_continued(run.spec, plans[1].revision if 1 in plans else None)
    needs_profiles = round_ <= run.spec.rounds.count and round_ not in plans
    sites = {site.name for site in run.sites} | (set(plan.plans) if plan else set())
    admission = Admission(run.ref, run.spec.task, plan)
    reported = frozenset(name for name, status in own_jobs.items() if reader.has_reported(status, admission))
    refused: dict[str, Refused] = {}
    observed = Observed(
        resumed_at=resumed_at,
        jobs=own_jobs,
        reported=reported,
        profiles=reader.by_site(names.profile_result, admission.of_profile, sites, refused) if needs_profiles else {},
        plan=plan,
        plans=plans,
        out_of_reach=reader.by_round(names.out_of_reach, OutOfReach, _whole, [round_]).get(round_),
        expired_profiles=reader.by_round(names.expired_profiles, ExpiredProfiles, _whole, [round_]).get(round_),
        commits=reader.by_round(names.round_commit, RoundCommit, summarize_commit, rounds),
        learned=_learned(reader, round_ - 1) if needs_profiles and round_ > 1 else {},
        evaluations=evaluations,
        updates=reader.by_site(partial(names.update_result, round_), partial(admission.of_update, round_), sites, refused),
        verdicts=reader.verdicts(partial(names.update_verdict, round_), sites),
        # Of a round that is evaluated already, nothing was listed.
        site_evaluations=reader.by_site(
            partial(names.evaluation_result, round_ - 1), partial(admission.of_evaluation, round_ - 1), sites, refused, may_change=True
        ),
        dry_exports=reader.attempts(names.dry_export_result, admission.of_dry_export, refused),
        exports=reader.attempts(names.export_result, admission.of_export, refused),
        refused=refused,
    )
    cache.end()
    return observed


def _whole(value: WireT) -> WireT:
    """An object that is small enough to be its own summary."""
    return value


def _evaluations(run: Run, store: Store, cache: ObjectCache) -> dict[int, EvaluationSummary]:
    """By round, beginning with the base's: rounds are evaluated in order."""
    found: dict[int, EvaluationSummary] = {}
    metric = primary_metric(run.spec)
    summarize = partial(summarize_evaluation, metric=metric)
    for round_ in range(run.spec.rounds.count + 1):
        key = names.round_evaluation(round_)
        if cache.is_warm and key not in cache.objects and key not in cache.listing(store, names.round_folder(round_)):
            break  # the current round or the one before, whose folder is listed anyway
        _forget_other_metric(cache, key, metric)
        evaluation = _own_summary(cache, store, key, RoundEvaluation, summarize)
        if evaluation is None:
            break
        found[round_] = evaluation
    return found


def _forget_other_metric(cache: ObjectCache, key: str, metric: str) -> None:
    """Have an evaluation read again if its summary was made for another metric: it has what sites measured of that one only."""
    known = cache.objects.get(key)
    if isinstance(known, EvaluationSummary) and known.metric != metric:
        del cache.objects[key]


def _listed_rounds(store: Store, cache: ObjectCache, unevaluated: int) -> tuple[int, ...]:
    """The rounds whose folders are listed, the current one last: it follows the first one without evaluation once that is committed."""
    key = names.round_commit(unevaluated)
    is_committed = unevaluated == 0 or key in cache.objects or key in cache.listing(store, names.round_folder(unevaluated))
    return (unevaluated, unevaluated + 1) if is_committed else (unevaluated,)


def _observed_rounds(round_: int, exported: int) -> list[int]:
    """The rounds whose plan and commit are read: the current one, those of the status's history, the first and the best."""
    return sorted({1, exported, *range(max(1, round_ - HISTORY - 1), round_ + 1)} - {0})


def _plans(reader: "_StoreReader", rounds: Sequence[int]) -> tuple[RoundPlan | None, dict[int, PlanSummary]]:
    """The newest plan, and the summaries of all: the plans of the sites are the larger part of what a long run would keep."""
    newest = next((round_ for round_ in reversed(rounds) if reader.exists(names.round_plan(round_))), None)
    if newest is None:
        return None, {}
    earlier = [round_ for round_ in rounds if round_ < newest]
    summaries = reader.by_round(names.round_plan, RoundPlan, summarize_plan, earlier)
    plan = _own_object(reader.cache, reader.store, names.round_plan(newest), RoundPlan)
    return (None, summaries) if plan is None else (plan, summaries | {newest: summarize_plan(plan)})


def _learned(reader: "_StoreReader", round_: int) -> dict[str, float]:
    """What a committed round changed, by weight. It is not cached: of each run it would be the largest part, and is read once a round."""
    commit = reader.cache.read_once(reader.store, names.round_commit(round_), RoundCommit)
    return dict(commit.learned) if commit else {}


def _own_object(cache: ObjectCache, store: Store, key: str, kind: type[WireT]) -> WireT | None:
    """An object that the operator itself wrote."""
    try:
        return cache.read(store, key, kind)
    except ValueError as error:
        raise unreadable_error(key, error) from error


def _own_summary(cache: ObjectCache, store: Store, key: str, kind: type[WireT], summarize: Callable[[WireT], Summary]) -> Summary | None:
    """The summary of an object that the operator itself wrote."""
    try:
        return cache.read_summary(store, key, kind, summarize)
    except ValueError as error:
        raise unreadable_error(key, error) from error


def _belongs_to(run: Run, status: JobStatus) -> bool:
    """Whether a job is this run's: a backend may serve several runs, and the job's name is derived from the run's."""
    job = status.job
    return job_of(run, job.kind, site=job.site, round_=job.round, attempt=job.attempt).name == job.name


def _reader(run: Run, jobs: Mapping[str, JobStatus], store: Store, cache: ObjectCache, rounds: Sequence[int]) -> "_StoreReader":
    """List every folder whose attempts still count."""
    profiling = {name: status for name, status in jobs.items() if status.job.kind is TaskKind.PROFILE}
    exporting = {name: status for name, status in jobs.items() if status.job.kind in {TaskKind.DRY_EXPORT, TaskKind.EXPORT}}
    folders = [names.round_folder(round_) for round_ in rounds]
    listed = {
        "profile": cache.listing_of(store, "profile", profiling),
        **{folder: cache.listing(store, folder) for folder in folders},
        "export": cache.listing_of(store, "export", exporting),
    }
    keys = frozenset(key for keys in listed.values() for key in keys)
    active = {KINDS[status.job.kind].result_key(status.job) for status in jobs.values() if status.state in ACTIVE_STATES}
    return _StoreReader(run, store, cache, tuple(listed), names.Listing(keys), frozenset(active))


@dataclass(frozen=True)
class _StoreReader:
    """Reads the objects of the keys that were listed."""

    run: Run
    store: Store
    cache: ObjectCache
    folders: tuple[str, ...]
    """What was listed."""
    listing: names.Listing
    active: frozenset[str]
    """Keys of the results of active jobs."""

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        is_known = key in self.listing.keys or key in self.cache.objects
        return is_known or (not self._is_absent(key) and self.store.size(key) is not None)

    def by_round(
        self, key_of: Callable[[int], str], kind: type[WireT], summarize: Callable[[WireT], Summary], rounds: Iterable[int]
    ) -> dict[int, Summary]:
        """Summaries by round."""
        keys = {round_: key for round_ in rounds if not self._is_absent(key := key_of(round_))}
        found = ((round_, _own_summary(self.cache, self.store, key, kind, summarize)) for round_, key in keys.items())
        return {round_: value for round_, value in found if value is not None}

    def by_site(
        self,
        key_of: Callable[[str, int], str],
        admission: Callable[[str, int], Admit[Admitted]],
        sites: Iterable[str],
        refused: dict[str, Refused],
        *,
        may_change: bool = False,
    ) -> dict[str, dict[int, Admitted]]:
        """Results by site and attempt; what is refused is added to `refused`. A site that no longer exists may have left results.

        Args:
            key_of: the key of a site's attempt.
            admission: how it is admitted.
            sites: whose results are read.
            refused: by key.
            may_change: whether another job writes what an interrupted one left: a training, the evaluation before its first step.
        """
        return {
            site: self.attempts(partial(key_of, site), partial(admission, site), refused, site, may_change=may_change)
            for site in sorted(sites)
        }

    def attempts(
        self,
        key_of: Callable[[int], str],
        admission: Callable[[int], Admit[Admitted]],
        refused: dict[str, Refused],
        site: str = "",
        *,
        may_change: bool = False,
    ) -> dict[int, Admitted]:
        """Results by attempt. An attempt that was killed left nothing, so there may be gaps."""
        found: dict[int, Admitted] = {}
        for attempt in self.listing.attempts(key_of):
            value = self.cache.admit(
                self.store, key := key_of(attempt), admission(attempt), site, may_change=may_change or key in self.active
            )
            if isinstance(value, Refused):
                refused[key] = value
            elif value is not None:
                found[attempt] = value
        return found

    def verdicts(self, key_of: Callable[[str, int], str], sites: Iterable[str]) -> dict[str, dict[int, Verdict]]:
        """What the gate said, by site and attempt."""
        found = {site: self.listing.attempts(partial(key_of, site)) for site in sorted(sites)}
        read = {
            site: {attempt: _own_object(self.cache, self.store, key_of(site, attempt), Verdict) for attempt in attempts}
            for site, attempts in found.items()
        }
        return {site: {attempt: one for attempt, one in verdicts.items() if one is not None} for site, verdicts in read.items()}

    def has_reported(self, status: JobStatus, admission: Admission) -> bool:
        """Whether an active job has left its result; that of an interrupted trainer will be overwritten and does not count."""
        if status.exit_code is not None or status.state not in ACTIVE_STATES:
            return False
        key = KINDS[status.job.kind].result_key(status.job)
        if not any(is_in_folder(key, folder) for folder in self.folders):
            return self.store.size(key) is not None
        if status.job.kind.is_operators or key not in self.listing.keys:
            return key in self.listing.keys
        return not is_interrupted(self.cache.admit(self.store, key, admission.of_job(status.job), status.job.site, may_change=True))

    def _is_absent(self, key: str) -> bool:
        """Whether the key's folder was listed without it."""
        return key not in self.listing.keys and any(is_in_folder(key, folder) for folder in self.folders)
