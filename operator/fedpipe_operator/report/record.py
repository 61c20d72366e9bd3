"""The record of a run, read from its store: the first step of every report.

The store is the only source, so that an unfinished run, or one whose operator no longer runs, is read in the same way.
Objects that do not exist yet are absent from the record; objects that cannot be read are listed in `unreadable`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from fedpipe_operator import names
from fedpipe_operator.admission import AdmittedEvaluation, AdmittedExport, AdmittedProfile, AdmittedUpdate, Refused
from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.rounds import Run, exported_round
from fedpipe_operator.rounds.admitting import Admissible, Admission, Admit
from fedpipe_operator.rounds.records import Comparison, RoundCommit, RoundEvaluation, RoundPlan, Verdict
from fedpipe_operator.store import Store
from fedpipe_operator.store.objects import decode_object
from fedpipe_trainer.contract import Wire

Read = TypeVar("Read", bound=Wire)
Admitted = TypeVar("Admitted", bound=Admissible)
Value = TypeVar("Value")


@dataclass(frozen=True)
class RunRecord:
    """One run as recorded in its store. Rounds count from 1; in `evaluations` and `site_evaluations`, 0 is the base."""

    run: FederatedFineTune
    plans: dict[int, RoundPlan] = field(default_factory=dict)
    updates: dict[int, dict[str, AdmittedUpdate]] = field(default_factory=dict)
    """By round and site: the result of the aggregated update, else that of the site's last attempt, refused or failed."""
    verdicts: dict[int, dict[str, Verdict]] = field(default_factory=dict)
    """By round and site: the verdict on that update."""
    rounds: dict[int, RoundCommit] = field(default_factory=dict)
    """The committed rounds."""
    evaluations: dict[int, RoundEvaluation] = field(default_factory=dict)
    site_evaluations: dict[int, dict[str, AdmittedEvaluation]] = field(default_factory=dict)
    profiles: dict[str, AdmittedProfile] = field(default_factory=dict)
    export: AdmittedExport | None = None
    comparison: Comparison | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    """By key of an object that could not be read: the reason."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site with a plan, then those that were only profiled or excluded: the order of all tables and figures."""
        planned = {site for plan in self.plans.values() for site in plan.plans}
        others = {site for plan in self.plans.values() for site in plan.excluded} | set(self.profiles)
        return (*sorted(planned), *sorted(others - planned))

    @property
    def newest_plan(self) -> RoundPlan | None:
        """The last round's plan."""
        return self.plans[max(self.plans)] if self.plans else None

    @property
    def result(self) -> RoundEvaluation | None:
        """The evaluation of the round that is exported, the best so far; None before a round was evaluated (the base does not count)."""
        round_ = exported_round(self.run.spec, self.evaluations)
        return self.evaluations[round_] if round_ else None


def read_record(run: FederatedFineTune, store: Store) -> RunRecord:
    """Read everything that the store has of this run. The store's keys are relative to the run."""
    reader = _RecordReader(store, names.Listing(frozenset(store.list())))
    rounds = reader.listing.rounds()
    commits = reader.read_by_round(rounds, names.round_commit, RoundCommit)
    attempts = {round_: _attempts(reader, round_, commits.get(round_)) for round_ in rounds}
    plans = reader.read_by_round(rounds, names.round_plan, RoundPlan)
    ref = Run(run, ()).ref
    admissions = {round_: Admission(ref, run.spec.task, plans.get(round_)) for round_ in rounds}
    admission = Admission(ref, run.spec.task, None)
    return RunRecord(
        run=run,
        plans=plans,
        updates=_by_round_and_site(
            attempts,
            lambda round_, site, attempt: reader.admit(
                names.update_result(round_, site, attempt), admissions[round_].of_update(round_, site, attempt)
            ),
        ),
        verdicts=_by_round_and_site(
            attempts, lambda round_, site, attempt: reader.read(names.update_verdict(round_, site, attempt), Verdict)
        ),
        rounds=commits,
        evaluations=reader.read_by_round(rounds, names.round_evaluation, RoundEvaluation),
        site_evaluations={round_: results for round_ in rounds if (results := _site_evaluations(reader, admission, round_))},
        profiles=reader.admit_by_site("profile", names.profile_result, admission.of_profile),
        export=reader.admit_newest(names.export_result, admission.of_export),
        comparison=reader.read(names.COMPARISON, Comparison),
        unreadable=reader.unreadable,
    )


@dataclass(frozen=True)
class _RecordReader:
    """A store reader: lists the store once, so that a missing object costs no request, and collects the unreadable objects."""

    store: Store
    listing: names.Listing
    unreadable: dict[str, str] = field(default_factory=dict)

    def read(self, key: str, kind: type[Read]) -> Read | None:
        data = self.store.read(key) if key in self.listing.keys else None
        if data is None:
            return None
        try:
            return decode_object(data, kind)
        except ValueError as error:
            self.unreadable[key] = str(error)
            return None

    def admit(self, key: str, admit: Admit[Admitted]) -> Admitted | None:
        """What a site wrote."""
        data = self.store.read_start(key, admit.at_most) if key in self.listing.keys else None
        if data is None:
            return None
        value = admit.result(data)
        if isinstance(value, Refused):
            self.unreadable[key] = str(value)
            return None
        return value

    def newest_attempt(self, key_of: Callable[[int], str]) -> int | None:
        """The newest attempt whose object exists; None if there is none."""
        return max(self.listing.attempts(key_of), default=None)

    def admit_newest(self, key_of: Callable[[int], str], admission: Callable[[int], Admit[Admitted]]) -> Admitted | None:
        attempt = self.newest_attempt(key_of)
        return None if attempt is None else self.admit(key_of(attempt), admission(attempt))

    def read_by_round(self, rounds: Iterable[int], key_of: Callable[[int], str], kind: type[Read]) -> dict[int, Read]:
        values = {round_: self.read(key_of(round_), kind) for round_ in rounds}
        return {round_: value for round_, value in values.items() if value is not None}

    def admit_by_site(
        self, folder: str, key_of: Callable[[str, int], str], admission: Callable[[str, int], Admit[Admitted]]
    ) -> dict[str, Admitted]:
        """By site with a subfolder of `folder`: the result of its newest attempt."""
        values = {site: self.admit_newest(partial(key_of, site), partial(admission, site)) for site in self.listing.sites(folder)}
        return {site: value for site, value in values.items() if value is not None}


def _attempts(reader: _RecordReader, round_: int, commit: RoundCommit | None) -> dict[str, int]:
    """By site, the attempt to show: the aggregated one, else the newest."""
    newest = {
        site: reader.newest_attempt(partial(names.update_result, round_, site))
        for site in reader.listing.sites(f"{names.round_folder(round_)}/updates")
    }
    aggregated = {} if commit is None else {update.site: update.attempt for update in commit.contributions}
    return {site: attempt for site, attempt in (newest | aggregated).items() if attempt is not None}


def _by_round_and_site(attempts: dict[int, dict[str, int]], read: Callable[[int, str, int], Value | None]) -> dict[int, dict[str, Value]]:
    table: dict[int, dict[str, Value]] = {}
    for round_, by_site in attempts.items():
        for site, attempt in by_site.items():
            value = read(round_, site, attempt)
            if value is not None:
                table.setdefault(round_, {})[site] = value
    return table


def _site_evaluations(reader: _RecordReader, admission: Admission, round_: int) -> dict[str, AdmittedEvaluation]:
    folder = f"{names.round_folder(round_)}/evaluations"
    return reader.admit_by_site(folder, partial(names.evaluation_result, round_), partial(admission.of_evaluation, round_))
