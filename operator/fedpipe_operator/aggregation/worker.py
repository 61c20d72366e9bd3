"""The operator's own heavy work, in a process apart: `python -m fedpipe_operator.aggregation.worker TASK.json` aggregates one round.

The same task runs as a child process or as a Job of the operator's image. It reads plan and updates from the store,
writes verdicts, then the global adapter, and last the round's commit. Run twice, the second
finds the commit and does nothing.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fedpipe_operator import names
from fedpipe_operator.aggregation import (
    Candidate,
    CannotAggregateError,
    FileSource,
    RoundInput,
    RoundResult,
    Rule,
    Source,
    aggregate_round,
    openblas,
)
from fedpipe_operator.aggregation.malloc import keep_freed_memory
from fedpipe_operator.errors import FedPipeError, TransientError
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan, UpdateRef
from fedpipe_operator.store import Store
from fedpipe_operator.store.address import BucketAddress, StoreAddress, open_store
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import ExitCode, RunRef, TrainResult, Wire

_PIECE_BYTES: Final = 16 * 2**20


class AggregationTask(Wire):
    """Aggregate one round. The store's credentials are in the environment."""

    store: StoreAddress
    run: RunRef
    round: int
    method: str
    max_rank: int
    max_norm: float
    updates: tuple[UpdateRef, ...]
    absent: dict[str, str] = {}
    """Why no update came, by site: for the round's commit."""


def aggregate(task: AggregationTask, store: Store) -> None:
    """Aggregate and commit the round, unless it is committed already or too few updates pass the gate.

    Raises:
        FedPipeError: the store cannot be read or written, or a plan, result or adapter is not there.
        CannotAggregateError: the method cannot take these updates.
    """
    if store.read(names.round_commit(task.round)) is not None:
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as readers:
        path = Path(folder) / "adapter.safetensors"
        result = _aggregated(task, store, readers, path)
        for site, verdict in result.verdicts.items():
            store.write(names.update_verdict(task.round, site, _attempt_of(task, site)), verdict.to_json().encode())
        if result.commit is not None:
            told = {"absent": task.absent, "seconds": time.monotonic() - started}
            _commit(store, result.commit.model_copy(update=told), path)


def _aggregated(task: AggregationTask, store: Store, readers: ExitStack, path: Path) -> RoundResult:
    plan = required_object(store, names.round_plan(task.round), RoundPlan)
    shelf = _Shelf(store, readers, path.parent if isinstance(task.store, BucketAddress) else None)
    candidates = {update.site: _candidate(task.round, update, shelf) for update in task.updates}
    given = RoundInput(run=task.run, plan=plan, candidates=candidates, previous=_previous(task.round, shelf))
    with path.open("wb") as sink:
        return aggregate_round(given, _rule(task), sink)


def _rule(task: AggregationTask) -> Rule:
    return Rule(method=task.method, max_rank=task.max_rank, max_norm=task.max_norm, threads=openblas.threads())


@dataclass(frozen=True)
class _Shelf:
    """The adapters of the store, open for reading as long as `readers` is."""

    store: Store
    readers: ExitStack
    copies: Path | None
    """Where a bucket's objects are copied to; None for a store whose files are on this machine anyway."""

    def adapter(self, key: str) -> Source:
        """An adapter, from this machine's disk: it is read in many small pieces, and more than once where sites are many."""
        source = self.readers.enter_context(self.store.open_reader(key))
        if self.copies is None:
            return source
        file = self.readers.enter_context((self.copies / hashlib.sha256(key.encode()).hexdigest()).open("w+b"))
        file.writelines(source.read(start, _PIECE_BYTES) for start in range(0, source.size, _PIECE_BYTES))
        file.flush()
        return FileSource(file)


def _candidate(round_: int, update: UpdateRef, shelf: _Shelf) -> Candidate:
    result = required_object(shelf.store, names.update_result(round_, update.site, update.attempt), TrainResult)
    source = shelf.adapter(names.update_adapter(round_, update.site, update.attempt))
    return Candidate(attempt=update.attempt, result=result, source=source)


def _previous(round_: int, shelf: _Shelf) -> Source | None:
    """The global adapter that the round's sites started from; None in round 1."""
    if round_ == 1:
        return None
    return shelf.adapter(required_object(shelf.store, names.round_commit(round_ - 1), RoundCommit).adapter.name)


def _commit(store: Store, commit: RoundCommit, path: Path) -> None:
    """Write the adapter under a key that holds its hash, then the commit, if nobody else has.

    Two workers of one round may have seen different updates. Each writes its own key, and the commit names one.
    """
    key = names.global_adapter(commit.round, commit.adapter.sha256)
    store.write_file(key, path)
    committed = commit.model_copy(update={"adapter": commit.adapter.model_copy(update={"name": key})})
    store.create(names.round_commit(commit.round), committed.to_json().encode())


def _attempt_of(task: AggregationTask, site: str) -> int:
    return next(update.attempt for update in task.updates if update.site == site)


@contextmanager
def _exit_statuses() -> Iterator[None]:
    """Every way this process can fail, as an exit status and one line on stderr."""
    try:
        yield
    except TransientError as error:
        _leave(ExitCode.TRANSFER_FAILED, error)
    except (FedPipeError, CannotAggregateError, ValidationError) as error:
        _leave(ExitCode.BAD_TASK, error)


def _leave(code: ExitCode, error: Exception) -> None:
    sys.stderr.write(f"{error}\n")
    raise SystemExit(int(code)) from error


def main(arguments: list[str]) -> None:
    """Run the task in the file that the first argument names."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m fedpipe_operator.aggregation.worker TASK.json\n")
        raise SystemExit(int(ExitCode.BAD_TASK))
    keep_freed_memory()
    with _exit_statuses():
        task = AggregationTask.model_validate_json(Path(arguments[0]).read_text(encoding="utf-8"))
        aggregate(task, open_store(task.store))


if __name__ == "__main__":
    main(sys.argv[1:])
