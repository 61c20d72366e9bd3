"""All that is known of a run, read from its store: the first step of every report.

The store is the only source: a run that is half done, or whose operator is gone, reads the same way. What is not
there yet is absent from the record; what is there and cannot be read is named in `unreadable`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

from fedpipe_operator import names
from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.rounds import exported_round
from fedpipe_operator.rounds.records import Comparison, RoundCommit, RoundEvaluation, RoundPlan, Verdict
from fedpipe_operator.store import Store
from fedpipe_operator.store.objects import parsed
from fedpipe_trainer.contract import EvaluateResult, ExportResult, ProfileResult, TrainResult, Wire

Read = TypeVar("Read", bound=Wire)


@dataclass(frozen=True)
class RunRecord:
    """One run, as its store tells it. Rounds count from 1; in `evaluations` and `site_evaluations`, 0 is the base."""

    run: FederatedFineTune
    plans: dict[int, RoundPlan] = field(default_factory=dict)
    updates: dict[int, dict[str, TrainResult]] = field(default_factory=dict)
    """By round and site: the update that contributed, else the site's last one, refused or failed."""
    verdicts: dict[int, dict[str, Verdict]] = field(default_factory=dict)
    """By round and site: what the gate said of that update."""
    rounds: dict[int, RoundCommit] = field(default_factory=dict)
    """The committed rounds."""
    evaluations: dict[int, RoundEvaluation] = field(default_factory=dict)
    site_evaluations: dict[int, dict[str, EvaluateResult]] = field(default_factory=dict)
    profiles: dict[str, ProfileResult] = field(default_factory=dict)
    export: ExportResult | None = None
    comparison: Comparison | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    """By key: why an object of the run could not be read."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that was planned for, then those that were only profiled or excluded: the order of all tables and figures."""
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
    """Everything the store holds of this run. The store's keys are relative to the run."""
    shelf = _Shelf(store, frozenset(store.list()))
    rounds = shelf.rounds()
    commits = shelf.by_round(rounds, names.round_commit, RoundCommit)
    chosen = {round_: _attempts(shelf, round_, commits.get(round_)) for round_ in rounds}
    return RunRecord(
        run=run,
        plans=shelf.by_round(rounds, names.round_plan, RoundPlan),
        updates=_by_round_and_site(shelf, chosen, key_of=names.update_result, kind=TrainResult),
        verdicts=_by_round_and_site(shelf, chosen, key_of=names.update_verdict, kind=Verdict),
        rounds=commits,
        evaluations=shelf.by_round(rounds, names.round_evaluation, RoundEvaluation),
        site_evaluations={round_: found for round_ in rounds if (found := _site_evaluations(shelf, round_))},
        profiles=shelf.by_site("profile", names.profile_result, ProfileResult),
        export=shelf.newest(names.export_result, ExportResult),
        comparison=shelf.take(names.COMPARISON, Comparison),
        unreadable=shelf.unreadable,
    )


@dataclass(frozen=True)
class _Shelf:
    """The store with its listing, so that absence costs no request, and with what turned out to be unreadable."""

    store: Store
    keys: frozenset[str]
    unreadable: dict[str, str] = field(default_factory=dict)

    @cached_property
    def listing(self) -> names.Listing:
        """The keys, with the attempts among them."""
        return names.Listing(self.keys)

    def take(self, key: str, kind: type[Read]) -> Read | None:
        data = self.store.read(key) if key in self.keys else None
        if data is None:
            return None
        try:
            return parsed(data, kind)
        except ValueError as error:
            self.unreadable[key] = str(error)
            return None

    def rounds(self) -> list[int]:
        parts = {key.split("/")[1] for key in self.keys if key.startswith("rounds/")}
        return sorted(int(part) for part in parts if part.isdecimal())

    def sites(self, folder: str) -> list[str]:
        return sorted({key.removeprefix(f"{folder}/").split("/")[0] for key in self.keys if key.startswith(f"{folder}/")})

    def last(self, key_of: Callable[[int], str]) -> int | None:
        """The newest attempt whose object exists."""
        return max(self.listing.attempts(key_of), default=None)

    def newest(self, key_of: Callable[[int], str], kind: type[Read]) -> Read | None:
        attempt = self.last(key_of)
        return None if attempt is None else self.take(key_of(attempt), kind)

    def by_round(self, rounds: Iterable[int], key_of: Callable[[int], str], kind: type[Read]) -> dict[int, Read]:
        found = {round_: self.take(key_of(round_), kind) for round_ in rounds}
        return {round_: value for round_, value in found.items() if value is not None}

    def by_site(self, folder: str, key_of: Callable[[str, int], str], kind: type[Read]) -> dict[str, Read]:
        """By site that has a folder there: the newest attempt's object."""
        found = {site: self.newest(partial(key_of, site), kind) for site in self.sites(folder)}
        return {site: value for site, value in found.items() if value is not None}


def _attempts(shelf: _Shelf, round_: int, commit: RoundCommit | None) -> dict[str, int]:
    """By site, the attempt a reader wants to see: the one that contributed, else the newest."""
    newest = {site: shelf.last(partial(names.update_result, round_, site)) for site in shelf.sites(f"{names.round_folder(round_)}/updates")}
    contributed = {} if commit is None else {part.site: part.attempt for part in commit.contributions}
    return {site: attempt for site, attempt in (newest | contributed).items() if attempt is not None}


def _by_round_and_site(
    shelf: _Shelf, chosen: dict[int, dict[str, int]], *, key_of: Callable[[int, str, int], str], kind: type[Read]
) -> dict[int, dict[str, Read]]:
    table: dict[int, dict[str, Read]] = {}
    for round_, attempts in chosen.items():
        for site, attempt in attempts.items():
            value = shelf.take(key_of(round_, site, attempt), kind)
            if value is not None:
                table.setdefault(round_, {})[site] = value
    return table


def _site_evaluations(shelf: _Shelf, round_: int) -> dict[str, EvaluateResult]:
    folder = f"{names.round_folder(round_)}/evaluations"
    return shelf.by_site(folder, partial(names.evaluation_result, round_), EvaluateResult)
