"""The aggregation of one round, as a task of `fedpipe_operator.worker`: in a child process, or in a Job with the operator's image.

It reads the plan and the updates from the store and writes the verdicts, then the global adapter, and last the round's commit. If the
commit exists already, it does nothing.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from fedpipe_operator import names
from fedpipe_operator.admission import (
    AdmittedUpdate,
    Asked,
    RefusalReason,
    Refused,
    RefusedError,
    hash_of,
)
from fedpipe_operator.aggregation import (
    AggregationConfig,
    Candidate,
    FileSource,
    RoundInput,
    RoundResult,
    Source,
    aggregate_round,
    gate,
)
from fedpipe_operator.aggregation.clipping import MULTIPLE
from fedpipe_operator.aggregation.encoded import write_encoded
from fedpipe_operator.aggregation.normalization import NORMALIZATIONS
from fedpipe_operator.aggregation.parallel import thread_count
from fedpipe_operator.aggregation.tensors import open_tensors, sha256_of
from fedpipe_operator.api.aggregation import FEDAVG, Clipping, ServerOptimizer
from fedpipe_operator.errors import FedPipeError, UserError
from fedpipe_operator.rounds.admitting import update_admission
from fedpipe_operator.rounds.records import NO_STATE, RoundCommit, RoundPlan, UpdateRef, Verdict, verdict_of
from fedpipe_operator.store import Store
from fedpipe_operator.store.address import BucketAddress, StoreAddress
from fedpipe_operator.store.objects import required_object
from fedpipe_operator.store.pieces import open_whole_or_pieces, pieces_in
from fedpipe_operator.store.protocol import Reader
from fedpipe_trainer.contract import IDENTITY, Artifact, Codec, RunRef, Wire

_COPY_CHUNK: Final = 16 * 2**20

_REPLACED: Final = frozenset({"ObjectChanged", "ObjectTooShort", "ObjectMissing"})
"""Of an object that is written again, or deleted, while it is read."""


class AggregationTask(Wire):
    """Aggregate one round. The store's credentials are in environment variables."""

    kind: Literal["aggregate"] = "aggregate"
    store: StoreAddress
    run: RunRef
    round: int
    method: str
    rule: str = "Mean"
    malicious_sites: int = 1
    normalization: str
    max_site_weight: float | None = None
    clipping: Clipping = Clipping.CLIP
    clip_multiple: float = MULTIPLE
    optimizer: ServerOptimizer = FEDAVG
    warmup_steps: int = 0
    """Of the round's trainings: the normalization counts them by their learning rate."""
    max_rank: int
    max_norm: float
    """Upper bound on the Frobenius norm of a whole update's increment, over all weights together."""
    updates: tuple[UpdateRef, ...]
    absent: dict[str, str] = {}
    """By site, the reason why there is no update: for the round's commit, as are the next three."""
    refused: dict[str, Verdict] = {}
    """By site whose update was refused at first sight."""
    out_of_memory: dict[str, int] = {}
    late: tuple[str, ...] = ()
    previous: Artifact | None = None
    """The global adapter that the round's sites started from, by its key; None in round 1, and in the tasks of earlier versions."""
    plan_sha256: str = ""
    """Of the round's plan as the operator saw it (`admission.hash_of`), with the promises that were given to the sites. Empty likewise."""


def aggregate(task: AggregationTask, store: Store, clock: Callable[[], float] = time.time) -> None:
    """Aggregate and commit the round, unless it is committed already or too few updates pass the gate. `clock` gives Unix seconds.

    Raises:
        FedPipeError: the store cannot be read or written, or a plan, result or adapter is missing.
        CannotAggregateError: the method cannot aggregate these updates.
    """
    if store.read(names.round_commit(task.round)) is not None:
        return
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_files:
        path = Path(folder) / "adapter.safetensors"
        plan = _plan(task, store)
        result = _write_adapter(task, store, plan, open_files, path)
        for update in task.updates:
            store.write(names.update_verdict(task.round, update.site, update.attempt), result.verdicts[update.site].to_json().encode())
        if result.commit is not None:
            known = {"absent": task.absent, "out_of_memory": tuple(task.out_of_memory), "too_large": task.out_of_memory, "late": task.late}
            times = {"seconds": time.monotonic() - started, "finished_at": clock()}
            _commit(store, result.commit.model_copy(update=known | times), path, plan.codec)


def _write_adapter(task: AggregationTask, store: Store, plan: RoundPlan, open_files: ExitStack, path: Path) -> RoundResult:
    """Check and aggregate the task's updates; write the global adapter to the file at `path`."""
    reader = _AdapterReader(store, open_files, path.parent if isinstance(task.store, BucketAddress) else None)
    found = {update.site: _candidate(task, update, plan, reader) for update in task.updates}
    candidates = {site: one for site, one in found.items() if isinstance(one, Candidate)}
    refused = task.refused | {site: one for site, one in found.items() if isinstance(one, Verdict)}
    last = required_object(store, names.round_commit(task.round - 1), RoundCommit) if task.round > 1 else None
    round_input = RoundInput(
        plan=plan,
        candidates=candidates,
        refused=refused,
        previous=reader.open(task.previous or last.adapter) if last else None,
        before=None if task.optimizer.is_plain else _adapter_before_last(task.round, reader),
        state=(last.optimizer if last else None) or NO_STATE,
    )
    config = AggregationConfig(
        method=task.method,
        rule=task.rule,
        malicious_sites=task.malicious_sites,
        normalization=NORMALIZATIONS[task.normalization],
        max_site_weight=task.max_site_weight,
        clipping=task.clipping,
        clip_multiple=task.clip_multiple,
        optimizer=task.optimizer,
        warmup_steps=task.warmup_steps,
        max_rank=task.max_rank,
        max_norm=task.max_norm,
        threads=thread_count(),
    )
    with path.open("wb") as sink:
        return aggregate_round(round_input, config, sink)


def _plan(task: AggregationTask, store: Store) -> RoundPlan:
    """The round's plan, as the operator saw it."""
    key = names.round_plan(task.round)
    plan = required_object(store, key, RoundPlan)
    if task.plan_sha256 and hash_of(plan) != task.plan_sha256:
        raise _overwritten(key, "it is another one than when its trainings were started")
    return plan


@dataclass(frozen=True)
class _AdapterReader:
    """Opens adapters in the store for reading; they are closed together with `open_files`."""

    store: Store
    open_files: ExitStack
    local_folder: Path | None
    """Where a bucket's objects are copied to; None for a store whose files are on this machine already."""

    def open(self, adapter: Artifact) -> Source:
        """An adapter on this machine's disk: it is read in many small ranges, and more than once if there are many sites.

        Raises:
            UserError: `ObjectUnreadable`, it is another one than this.
        """
        source = self.open_files.enter_context(self.store.open_reader(adapter.name))
        if source.size != adapter.size:  # asked first: of a larger one, the disk would be full
            raise _overwritten(adapter.name, f"it has {source.size} bytes instead of {adapter.size}")
        on_disk = self._on_disk(adapter.name, source)
        if sha256_of(on_disk) != adapter.sha256:
            raise _overwritten(adapter.name, "it has another SHA-256 than the commit of its round")
        return on_disk

    def open_update(self, key: str, pieces: str, size: int, check: Callable[[int], None]) -> Source:
        """Likewise the adapter of an update, whole or in pieces, of so many bytes by its result. `check` sees those that it has first."""
        source = self.open_files.enter_context(open_whole_or_pieces(self.store, key, pieces, size))
        check(source.size)
        return self._on_disk(key, source)

    def _on_disk(self, key: str, source: Reader) -> Source:
        if self.local_folder is None:
            return source
        file = self.open_files.enter_context((self.local_folder / hashlib.sha256(key.encode()).hexdigest()).open("w+b"))
        file.writelines(source.read(start, _COPY_CHUNK) for start in range(0, source.size, _COPY_CHUNK))
        file.flush()
        return FileSource(file)


def _candidate(task: AggregationTask, update: UpdateRef, plan: RoundPlan, reader: _AdapterReader) -> Candidate | Verdict:
    """The update, or why it is refused: then nothing of its adapter is read."""
    attempt = (task.round, update.site, update.attempt)
    key, pieces = names.update_adapter(*attempt), names.update_pieces(*attempt)
    if reader.store.size(key) is None and not pieces_in(reader.store, pieces):
        return verdict_of(Refused(RefusalReason.NO_ADAPTER, f"adapter of site {update.site}: it is not in the store"))
    result = _admitted(task, update, plan, reader.store)
    if isinstance(result, Refused):
        return verdict_of(result)
    try:
        size = result.adapter.size if result.adapter else 0
        check = partial(gate.check_size, plan=plan, site=update.site, stated=size)
        return Candidate(result, reader.open_update(key, pieces, size, check))
    except RefusedError as error:
        return verdict_of(error.refused)
    except FedPipeError as error:
        if error.reason not in _REPLACED:
            raise
        message = f"adapter of site {update.site}: it was replaced while it was copied ({error.reason})"
        return verdict_of(Refused(RefusalReason.OVERWRITTEN, message))


def _admitted(task: AggregationTask, update: UpdateRef, plan: RoundPlan, store: Store) -> AdmittedUpdate | Refused:
    """The result of a training, if it is the same as when the operator saw it first."""
    asked = Asked(task.run, update.site, task.round, update.attempt)
    admit = update_admission(asked, plan)
    data = store.read_start(names.update_result(task.round, update.site, update.attempt), admit.at_most)
    if data is None:
        return Refused(RefusalReason.OVERWRITTEN, f"{asked.what}: it is not in the store any more")
    result = admit.result(data)
    if isinstance(result, Refused) or not update.sha256 or hash_of(result) == update.sha256:
        return result
    return Refused(RefusalReason.OVERWRITTEN, f"{asked.what}: it is another one than when it was first seen")


def _adapter_before_last(round_: int, reader: _AdapterReader) -> Source | None:
    """The global adapter before the one that the round's sites started from; None in rounds 1 and 2."""
    if round_ <= 2:  # noqa: PLR2004 -- the first round that has two before it is the third
        return None
    return reader.open(required_object(reader.store, names.round_commit(round_ - 2), RoundCommit).adapter)


def _overwritten(key: str, how: str) -> UserError:
    return UserError("ObjectUnreadable", f"{key} was overwritten: {how}; start the run over, and check who writes into its folder")


def _commit(store: Store, commit: RoundCommit, path: Path, codec: Codec | None) -> None:
    """Write the adapter under a key that contains its hash, as the sites read it as well, then create the commit unless it exists.

    Two workers of one round may aggregate different updates. Each writes an adapter under its own key, and the commit names one of them.
    """
    key = names.global_adapter(commit.round, commit.adapter.sha256)
    store.write_file(key, path)
    adapter = commit.adapter.model_copy(update={"name": key})
    committed = commit.model_copy(update={"adapter": adapter, "download": _write_download(store, commit.round, path, codec)})
    store.create(names.round_commit(commit.round), committed.to_json().encode())


def _write_download(store: Store, round_: int, path: Path, codec: Codec | None) -> Artifact | None:
    """The global adapter of this file as the sites read it; None if they read it as it is."""
    if codec is None or codec.downlink == IDENTITY:
        return None
    encoded_path = path.with_name("encoded.safetensors")
    with path.open("rb") as file, encoded_path.open("wb") as sink:
        artifact = write_encoded(open_tensors(FileSource(file)), codec, "", sink)
    key = names.encoded_adapter(round_, artifact.sha256)
    store.write_file(key, encoded_path)
    return artifact.model_copy(update={"name": key})
