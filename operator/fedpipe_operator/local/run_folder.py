"""A run's folder on this machine, `<output>/<namespace>/<name>/`, and its two locks.

store/          what a bucket would hold below the run's prefix: adapter, merged model, report.html, every round
jobs/           a folder for each job: the task, the log, how it ended
run.json        the uid of the run and the hashes of its spec
status.json     the run's status, as `kubectl get -o yaml` would show it
lock            held by the one `fedpipe run` that may work in the folder
processes.lock  inherited by the processes of its jobs, so that it is free only when all of them ended
"""

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpipe_operator.api import FederatedFineTune, FineTuneSpec, FineTuneStatus
from fedpipe_operator.errors import UserError
from fedpipe_operator.rounds import is_over
from fedpipe_operator.rounds.revision import IMMUTABLE_TEXT, is_revision_of, revision_of
from fedpipe_operator.store.objects import ModelT, decode_object, unreadable_error
from fedpipe_trainer.contract import Wire

PROCESSES_LOCK = "processes.lock"
_LOCK = "lock"
_LOCK_TIMEOUT_SECONDS = 60.0
_LOCK_POLL_SECONDS = 0.05


class Origin(Wire):
    """The run that a folder was made for: the content of `run.json`."""

    uid: str
    spec_sha256: str
    """Of the spec that the run was last started with."""
    revision: str = ""
    """Of its fields that may not change; empty in a folder of an earlier version, whose spec may not change at all."""


class RunFolder:
    """The folder of one run. Only `read_only` may be used without the lock."""

    def __init__(self, output: Path, resource: FederatedFineTune) -> None:
        self.path = output.resolve() / resource.metadata.namespace / resource.metadata.name
        self.store = self.path / "store"
        self._resource = resource

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of this folder.

        Raises:
            UserError: `RunInProgress`, another `fedpipe run` of the same name holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _try_lock(descriptor):
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                message = f"another fedpipe run (process {holder}) uses {self.path}: wait for it, stop it, or choose another --output"
                raise UserError("RunInProgress", message)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def start_over(self) -> None:
        """Remove everything that an earlier run of this name left, except the locks.

        This waits for the trainers of a killed run, which may still be writing their checkpoints.

        Raises:
            UserError: `ProcessesRunning`, see `acquire_process_lock`.
        """
        os.close(acquire_process_lock(self.path / PROCESSES_LOCK, _LOCK_TIMEOUT_SECONDS))
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in {_LOCK, PROCESSES_LOCK}:
                entry.unlink()

    def is_edited(self) -> bool:
        """Whether the spec has been edited since the run was last resumed."""
        origin = self._origin()
        return origin is not None and origin.spec_sha256 != _hash_of(self._resource.spec)

    def resume(self) -> FederatedFineTune:
        """The run with the uid and the status of this folder; a new folder gets a new uid.

        As on a cluster, a run that is not over continues with an edited spec, unless a field that may not change has changed.

        Raises:
            UserError: `OtherSpec`, the folder is of a run that is over, or that depends on other values of the fields that may not
                change; `ObjectUnreadable`, a file of it is damaged.
        """
        spec, status = self._resource.spec, self._status()
        current = Origin(uid=str(uuid.uuid4()), spec_sha256=_hash_of(spec), revision=revision_of(spec))
        origin = self._origin() or current
        if origin.spec_sha256 != current.spec_sha256:
            self._require_editable(status, is_same_revision=is_revision_of(origin.revision, spec))
        _replace(self.path / "run.json", current.model_copy(update={"uid": origin.uid}).to_json())
        metadata = self._resource.metadata.model_copy(update={"uid": origin.uid})
        return self._resource.model_copy(update={"metadata": metadata, "status": status})

    def read_only(self) -> FederatedFineTune:
        """The run with the uid and the status of this folder. Nothing is written."""
        origin = self._origin()
        metadata = self._resource.metadata.model_copy(update={"uid": origin.uid}) if origin else self._resource.metadata
        return self._resource.model_copy(update={"metadata": metadata, "status": self._status()})

    def write_status(self, status: FineTuneStatus) -> None:
        """Replace the status atomically."""
        _replace(self.path / "status.json", status.to_json())

    def _require_editable(self, status: FineTuneStatus, *, is_same_revision: bool) -> None:
        """Refuse an edited spec if the run is over, or if a field that may not change has changed."""
        advice = "rename the run, or start over with --fresh"
        if is_over(self._resource.model_copy(update={"status": status})):
            raise UserError("OtherSpec", f"{self.path} holds a run of the same name that has ended with another spec: {advice}")
        if not is_same_revision:
            message = f"{self.path} holds a run of the same name that began with another value of one of {IMMUTABLE_TEXT}: "
            raise UserError("OtherSpec", f"{message}restore it, {advice}")

    def _origin(self) -> Origin | None:
        file = self.path / "run.json"
        return _read(file, Origin) if file.exists() else None

    def _status(self) -> FineTuneStatus:
        file = self.path / "status.json"
        return _read(file, FineTuneStatus) if file.exists() else FineTuneStatus()


def _hash_of(spec: FineTuneSpec) -> str:
    """Of all that the run depends on: its trackers are written from what it left, so they may be edited after its end, too."""
    text = spec.model_dump_json(by_alias=True, exclude_none=True, indent=2, exclude={"tracking"})
    return hashlib.sha256(text.encode()).hexdigest()


def _read(file: Path, kind: type[ModelT]) -> ModelT:
    try:
        return decode_object(file.read_bytes(), kind)
    except ValueError as error:
        raise unreadable_error(str(file), error) from error


def _replace(file: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old text or the new, also after this process is killed."""
    unfinished = file.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def acquire_process_lock(file: Path, timeout_seconds: float) -> int:
    """Wait for the process lock of a folder. The result is the locked descriptor, which every process of a job must inherit.

    The kernel frees a lock when the last process that holds it open ends. A trainer whose operator was killed is still
    writing its checkpoint: a second one for the same task would double the memory and race for that checkpoint.

    Raises:
        UserError: `ProcessesRunning`, processes of an earlier run do not end within `timeout_seconds`.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    give_up_at = time.monotonic() + timeout_seconds
    while not _try_lock(descriptor):
        if time.monotonic() > give_up_at:
            os.close(descriptor)
            message = f"processes of an earlier run are still running and hold {file}: find them with `fuser {file}` and end them"
            raise UserError("ProcessesRunning", message)
        time.sleep(_LOCK_POLL_SECONDS)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
