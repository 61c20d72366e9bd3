"""Reads a run's finished rounds from its store, each once however many trackers ask for it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from fedpipe_operator import names
from fedpipe_operator.admission import Refused
from fedpipe_operator.memory_budget import Holding, bytes_in_memory, bytes_of
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.admitting import Admission
from fedpipe_operator.rounds.records import Contribution, RoundCommit, RoundEvaluation, RoundPlan
from fedpipe_operator.store import Store
from fedpipe_operator.store.objects import WireT, read_object
from fedpipe_operator.tracking.content import RoundEntry, RoundRecords, entry_of, shown_plan

_MOST_RESULTS: Final = 100
"""Of a round's trainings that are read for their losses: a tenth of a minute at a store that answers in 50 ms."""
_CARD_BYTES: Final = 2**18


@dataclass
class FinishedRounds:
    """The finished rounds of one run: those that are committed and evaluated, and 0, the base."""

    run: Run
    store: Store
    holding: Holding = field(default_factory=Holding)
    """What they take of the operator's memory."""
    _entries: dict[int, RoundEntry] = field(default_factory=dict)

    @cached_property
    def first_plan(self) -> RoundPlan | None:
        """The plan of round 1; None before there is one: then there is nothing to track."""
        return self.plan(1)

    def after(self, round_: int) -> Iterator[RoundEntry]:
        """The finished rounds after this one, in their order. Raises what the store raises, and `ObjectUnreadable`."""
        while (entry := self._entry(round_ + 1)) is not None:
            yield entry
            round_ += 1

    def plan(self, round_: int) -> RoundPlan | None:
        """A round's plan. Raises likewise."""
        return self._read(names.round_plan(round_), RoundPlan)

    def plan_shown(self, entry: RoundEntry) -> bytes:
        """The plan of a finished round, for the sites that its figures are of. Raises likewise."""
        plan = self.plan(entry.round)
        return shown_plan(plan, entry.by_site).encode() if plan else b"{}"

    def model_card(self) -> bytes | None:
        """The exported adapter's; None if there is none, or one of another size than such a card has."""
        card = self.store.read_start(names.MODEL_CARD, _CARD_BYTES + 1)
        return card if card is not None and len(card) <= _CARD_BYTES else None

    def _entry(self, round_: int) -> RoundEntry | None:
        if round_ not in self._entries and (records := self._records(round_)) is not None:
            entry = self._entries[round_] = entry_of(records)
            self.holding.hold(f"round {round_}", bytes_of(entry))
        return self._entries.get(round_)

    def _read(self, key: str, kind: type[WireT]) -> WireT | None:
        """An object, which takes memory until the next of its kind is read."""
        return read_object(self.store, key, kind, lambda data: self.holding.hold(kind.__name__, bytes_in_memory(data)))

    def _records(self, round_: int) -> RoundRecords | None:
        """None: the round is not finished yet."""
        evaluation = self._read(names.round_evaluation(round_), RoundEvaluation)
        if evaluation is None or round_ == 0:
            return None if evaluation is None else RoundRecords(evaluation)
        commit, plan = self._read(names.round_commit(round_), RoundCommit), self.plan(round_)
        if commit is None:
            return None
        return RoundRecords(evaluation, plan, commit, self._train_losses(commit, plan))

    def _train_losses(self, commit: RoundCommit, plan: RoundPlan | None) -> dict[str, float]:
        admission = Admission(self.run.ref, self.run.spec.task, plan)
        first = sorted(commit.contributions, key=lambda one: one.site)[:_MOST_RESULTS]
        losses = {one.site: self._train_loss(admission, commit.round, one) for one in first}
        return {site: loss for site, loss in losses.items() if loss is not None}

    def _train_loss(self, admission: Admission, round_: int, one: Contribution) -> float | None:
        """Of the update that was aggregated: what a site wrote there later has another hash, and is not shown."""
        admit = admission.of_update(round_, one.site, one.attempt)
        data = self.store.read_start(names.update_result(round_, one.site, one.attempt), admit.at_most)
        result = None if data is None else admit.result(data)
        if result is None or isinstance(result, Refused) or result.adapter is None or result.adapter.sha256 != one.sha256:
            return None
        return result.train_loss
