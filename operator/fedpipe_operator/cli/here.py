"""A run taken up on this machine: its folder locked, its door open, its progress shown. What `run` and `plan` share."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from fedpipe_operator import names
from fedpipe_operator.api import EdgeSite, FederatedFineTune, FineTuneStatus
from fedpipe_operator.api.checks import matches
from fedpipe_operator.cli.display import Display
from fedpipe_operator.cli.files import load
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.local import LocalBackend
from fedpipe_operator.local.outages import through_outages
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.local.session import Session
from fedpipe_operator.reconcile.placement import in_folders
from fedpipe_operator.rounds import Run
from fedpipe_operator.store.address import BucketAddress, DirectoryAddress

T = TypeVar("T")

INTERRUPTED = 130
S3 = Annotated[bool, typer.Option("--s3", help="Use spec.store, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")]
_TURN_SECONDS = 0.5
"""How often the sites' lines are redrawn; the loop itself is woken by jobs."""


@dataclass(frozen=True)
class Options:
    """What the command line says beside the YAML."""

    output: Path
    volumes: Path
    max_concurrent: int = 1
    fresh: bool = False
    s3: bool = False


@dataclass(frozen=True)
class Here:
    """A run that is ours to drive."""

    folder: RunFolder
    session: Session
    backend: LocalBackend
    display: Display

    def drive(self, sessions: Mapping[str, Session], until: Callable[[Session], bool] = lambda session: session.over) -> None:
        """Turn every session until each has come where it should."""

        def reconcile() -> bool:
            for session in sessions.values():
                if not until(session):
                    session.reconcile()
            return all(until(session) for session in sessions.values())

        while not self.patiently(reconcile):
            self.display.jobs(self.backend.observe())
            self.backend.wait(_TURN_SECONDS)
        self.display.jobs(self.backend.observe())

    def patiently(self, call: Callable[[], T]) -> T:
        """What the call gives, once the store lets it: an outage is waited through, and shown."""
        return through_outages(call, clock=time.time, wait=self._watch, say=lambda text: self.display.line(text, style="yellow"))

    def _watch(self, seconds: float) -> None:
        """Show for so many seconds how the jobs get on."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.display.jobs(self.backend.observe())
            self.backend.wait(min(left, _TURN_SECONDS))


def load_one(paths: list[Path]) -> tuple[FederatedFineTune, list[EdgeSite]]:
    """The one run of these files, and all their sites; anything else ends the command with status 2."""
    objects = load(paths)
    if len(objects.runs) != 1:
        typer.echo(f"these files hold {len(objects.runs)} FederatedFineTunes: name files that hold exactly one", err=True)
        raise typer.Exit(2)
    run = objects.runs[0]
    if not matching(run, objects.sites):
        typer.echo(f"these files hold no EdgeSite that {run.metadata.name} selects: name files that do", err=True)
        raise typer.Exit(2)
    return run, objects.sites


def volumes_beside(path: Path) -> Path:
    """The default for the folder of volumes: `volumes/` beside the YAML."""
    return (path if path.is_dir() else path.parent) / "volumes"


@contextmanager
def taken_up(resource: FederatedFineTune, sites: list[EdgeSite], options: Options, console: Console) -> Iterator[Here]:
    """Lock the run's folder, open the door, show progress; let go of all of it at the end.

    Raises:
        UserError: the folder is in use, or of another spec.
    """
    folder = RunFolder(options.output, resource)
    with folder.locked():
        if options.fresh:
            folder.start_over()
        adopted = folder.adopt()
        with _backend(folder, options) as backend, Display(console) as display:
            session = Session(
                run=Run(adopted, matching(adopted, sites)),
                backend=backend,
                placement=in_folders(options.volumes),
                address=address_of(adopted, folder, s3=options.s3),
                resumed_at=time.time(),
                on_status=_kept_and_shown(folder, display),
                on_event=display.event,
            )
            session.store.list()  # an address or a key that is wrong from the start is told at once, not waited for
            display.status(adopted.status)
            yield Here(folder, session, backend, display)


@contextmanager
def endings(console: Console) -> Iterator[None]:
    """Every way a command can be stopped, as a line for people and an exit status."""
    try:
        with _sigterm_as_interrupt():
            yield
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        raise typer.Exit(INTERRUPTED) from None
    except FedPipeError as error:
        typer.echo(f"{error.reason}: {error.message}", err=True)
        raise typer.Exit(1) from None


def matching(resource: FederatedFineTune, sites: list[EdgeSite]) -> tuple[EdgeSite, ...]:
    """The run's sites, by name."""
    return tuple(sorted((site for site in sites if matches(resource, site)), key=lambda site: site.name))


def _kept_and_shown(folder: RunFolder, display: Display) -> Callable[[FineTuneStatus], None]:
    def on_status(status: FineTuneStatus) -> None:
        folder.write_status(status)
        display.status(status)

    return on_status


def address_of(resource: FederatedFineTune, folder: RunFolder, *, s3: bool) -> DirectoryAddress | BucketAddress:
    """Where the run's objects are: in its folder, or in the bucket of its spec."""
    if not s3:
        return DirectoryAddress(root=str(folder.store))
    store, meta = resource.spec.store, resource.metadata
    prefix = names.run_prefix(store.prefix, meta.namespace, meta.name, meta.uid)
    return BucketAddress(bucket=store.bucket, prefix=prefix, endpoint=store.endpoint, region=store.region)


@contextmanager
def _backend(folder: RunFolder, options: Options) -> Iterator[LocalBackend]:
    """The door onto this machine; its processes end with it."""
    backend = LocalBackend(folder.path, max_concurrent=options.max_concurrent)
    try:
        yield backend
    finally:
        backend.close()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """`kill` stops a run as Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
