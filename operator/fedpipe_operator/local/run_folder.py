"""A run's folder on this machine: `<output>/<namespace>/<name>/` with its store, its jobs' logs, its status, and a lock.

store/        what an S3 bucket would hold, below the run's prefix: adapter, merged model, report.html, every round
jobs/         a folder per job: the task, the log, how it ended
run.json      which spec this folder is of, and since when
status.json   the run's status, as `kubectl get -o yaml` would show it
"""

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedpipe_operator.api import FederatedFineTune, FineTuneStatus
from fedpipe_operator.errors import UserError
from fedpipe_operator.local.process_lock import PROCESSES_LOCK, acquire_process_lock
from fedpipe_operator.store.objects import WireT, parsed, unreadable
from fedpipe_trainer.contract import Wire

_LOCK = "lock"
_PATIENCE_SECONDS = 60.0


class Origin(Wire):
    """What a folder was made for."""

    uid: str
    spec_sha256: str


class RunFolder:
    """The folder of one run, ours while it is locked."""

    def __init__(self, output: Path, resource: FederatedFineTune) -> None:
        self.path = output.resolve() / resource.metadata.namespace / resource.metadata.name
        self.store = self.path / "store"
        self._resource = resource

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of this folder.

        Raises:
            UserError: another `fedpipe run` of the same name is at work in it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                message = f"another fedpipe run (process {holder}) works in {self.path}: wait for it, stop it, or name another --output"
                raise UserError("RunInProgress", message) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def start_over(self) -> None:
        """Remove everything an earlier run of this name left, but for the locks.

        A trainer that outlived a killed run is waited for: it may still be writing its checkpoint.
        """
        os.close(acquire_process_lock(self.path / PROCESSES_LOCK, _PATIENCE_SECONDS))
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in {_LOCK, PROCESSES_LOCK}:
                entry.unlink()

    def adopt(self) -> FederatedFineTune:
        """The run with this folder's uid and status; a new folder is made the run's own.

        Raises:
            UserError: the folder is of a run with another spec.
        """
        origin = self._origin()
        metadata = self._resource.metadata.model_copy(update={"uid": origin.uid})
        return self._resource.model_copy(update={"metadata": metadata, "status": self._status()})

    def shown(self) -> FederatedFineTune:
        """The run with the status this folder holds, for reading only."""
        return self._resource.model_copy(update={"status": self._status()})

    def write_status(self, status: FineTuneStatus) -> None:
        """Replace the status whole."""
        _replace(self.path / "status.json", status.to_json())

    def _origin(self) -> Origin:
        file = self.path / "run.json"
        sha256 = hashlib.sha256(self._resource.spec.to_json().encode()).hexdigest()
        if not file.exists():
            _replace(file, Origin(uid=str(uuid.uuid4()), spec_sha256=sha256).to_json())
        origin = _read(file, Origin)
        if origin.spec_sha256 != sha256:
            message = f"{self.path} holds a run of the same name with another spec: give the run another name, or start over with --fresh"
            raise UserError("OtherSpec", message)
        return origin

    def _status(self) -> FineTuneStatus:
        file = self.path / "status.json"
        return _read(file, FineTuneStatus) if file.exists() else FineTuneStatus()


def _read(file: Path, kind: type[WireT]) -> WireT:
    try:
        return parsed(file.read_bytes(), kind)
    except ValueError as error:
        raise unreadable(str(file), error) from error


def _replace(file: Path, text: str) -> None:
    """Write a file whole: a reader, and a process killed here, leaves the old text or the new."""
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
