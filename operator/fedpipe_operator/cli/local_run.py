"""The driver of a run on this machine, shared by `run` and `plan`: folder lock, job backend, reconciliation, progress display."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from fedpipe_operator.api import TRACKED, EdgeSite, FederatedFineTune, FineTuneStatus
from fedpipe_operator.api.checks import matches
from fedpipe_operator.cli.display import Display
from fedpipe_operator.cli.files import load
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.local import LocalBackend
from fedpipe_operator.local.outages import retry_through_outages
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.local.session import Session
from fedpipe_operator.reconcile.placement import in_folders
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.model_claims import private_claims
from fedpipe_operator.store.address import BucketAddress, DirectoryAddress

T = TypeVar("T")

INTERRUPTED = 130
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over: remove the results of an earlier run of this name.")]
S3 = Annotated[bool, typer.Option("--s3", help="Use the bucket of spec.store, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")]
Rounds = Annotated[int | None, typer.Option(min=1, help="Overrides rounds.count.")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Overrides training.maxSteps.")]
_EDITED = "the spec was edited: steps that are finished, such as a round's plan, keep the earlier values; --fresh starts over"
_PLANNED_AGAIN = "the spec was edited: round 1, which had not begun, is planned again; the sites' profiles are kept"
_TRACKED_SECONDS = 0.2
_REDRAW_SECONDS = 0.5
"""How often the lines of the sites are redrawn. A job that starts or ends wakes the loop earlier."""


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    output: Path
    volumes: Path
    max_concurrent: int = 1
    fresh: bool = False
    s3: bool = False


@dataclass(frozen=True)
class LocalRun:
    """A run whose folder is locked, with its session, backend and display."""

    folder: RunFolder
    session: Session
    backend: LocalBackend
    display: Display

    def drive(self, sessions: Mapping[str, Session], until: Callable[[Session], bool] = lambda session: session.is_finished) -> None:
        """Reconcile the sessions until each meets the condition `until`."""

        def reconcile() -> bool:
            for session in sessions.values():
                if not until(session):
                    session.reconcile()
            return all(until(session) for session in sessions.values())

        while not self.retry(reconcile):
            self.display.jobs(self.backend.observe())
            self.backend.wait(_REDRAW_SECONDS)
        self.display.jobs(self.backend.observe())

    def track(self, seconds: float) -> None:
        """Wait so long, at most, until the trackers of a run that is over have its end; say where they are, or why they are not."""
        end = time.monotonic() + seconds
        while not (is_done := self.session.track()) and time.monotonic() < end:
            time.sleep(_TRACKED_SECONDS)
        found = next((one for one in self.session.run.resource.status.conditions if one.type == TRACKED), None)
        if found is not None and found.message:
            again = "" if is_done else "; the same command goes on with them"
            self.display.line(f"trackers: {found.message}{again}", style="" if is_done else "yellow")

    def retry(self, call: Callable[[], T]) -> T:
        """The result of `call`, retried while the store is not reachable. The outage is displayed."""
        report = partial(self.display.line, style="yellow")
        return retry_through_outages(call, clock=time.time, wait=self._display_progress, report=report)

    def _display_progress(self, seconds: float) -> None:
        """Display the progress of the jobs for `seconds`."""
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            self.display.jobs(self.backend.observe())
            self.backend.wait(min(remaining, _REDRAW_SECONDS))


def load_run(paths: list[Path]) -> tuple[FederatedFineTune, list[EdgeSite]]:
    """The run of these files, and all their sites. Exits with status 2 unless there is one run with at least one site."""
    objects = load(paths)
    if len(objects.runs) != 1:
        typer.echo(f"these files contain {len(objects.runs)} FederatedFineTunes: name files that contain exactly one", err=True)
        raise typer.Exit(2)
    run = objects.runs[0]
    if not select_sites(run, objects.sites):
        typer.echo(f"these files contain no EdgeSite that {run.metadata.name} selects: name files that do", err=True)
        raise typer.Exit(2)
    return run, objects.sites


def override(resource: FederatedFineTune, *, rounds: int | None, max_steps: int | None, seed: int | None = None) -> FederatedFineTune:
    """The run with the values of the command line in its spec."""
    spec = resource.spec
    rounds_spec = spec.rounds.model_copy(update={"count": rounds} if rounds is not None else {})
    training = {name: value for name, value in (("max_steps", max_steps), ("seed", seed)) if value is not None}
    spec = spec.model_copy(update={"rounds": rounds_spec, "training": spec.training.model_copy(update=training)})
    return resource.model_copy(update={"spec": spec})


@contextmanager
def open_run(resource: FederatedFineTune, sites: list[EdgeSite], options: Options, console: Console) -> Iterator[LocalRun]:
    """Lock the folder of the run, start the backend and the display; close all of them at the end.

    Raises:
        UserError: the folder is in use or of another run, or the store cannot be used.
    """
    folder = RunFolder(options.output, resource)
    with folder.lock():
        if options.fresh:
            folder.start_over()
        is_edited, resource = folder.is_edited(), folder.resume()
        with _backend(folder, options) as backend, Display(console) as display:
            session = Session(
                run=Run(resource, select_sites(resource, sites), private_claims=private_claims(sites, resource.metadata.namespace)),
                backend=backend,
                placement=in_folders(options.volumes),
                address=store_address(resource, folder, s3=options.s3),
                resumed_at=time.time(),
                on_status=_write_and_display(folder, display),
                on_event=display.event,
            )
            session.store.list()  # a wrong endpoint or wrong credentials fail here at once, without a retry
            if is_edited:
                display.line(_PLANNED_AGAIN if session.forget_plan() else _EDITED, style="yellow")
            display.status(resource.status)
            yield LocalRun(folder, session, backend, display)


@contextmanager
def exit_on_errors(console: Console) -> Iterator[None]:
    """Turn a signal or an error of FedPipe into a message and an exit status."""
    try:
        with _sigterm_as_interrupt():
            yield
    except KeyboardInterrupt:
        console.print("stopped; run the same command again to resume")
        raise typer.Exit(INTERRUPTED) from None
    except FedPipeError as error:
        typer.echo(f"{error.reason}: {error.message}", err=True)
        raise typer.Exit(1) from None


def select_sites(resource: FederatedFineTune, sites: list[EdgeSite]) -> tuple[EdgeSite, ...]:
    """The sites that the run selects, sorted by name."""
    return tuple(sorted((site for site in sites if matches(resource, site)), key=lambda site: site.name))


def _write_and_display(folder: RunFolder, display: Display) -> Callable[[FineTuneStatus], None]:
    def on_status(status: FineTuneStatus) -> None:
        folder.write_status(status)
        display.status(status)

    return on_status


def store_address(resource: FederatedFineTune, folder: RunFolder, *, s3: bool) -> DirectoryAddress | BucketAddress:
    """The address of the run's store: in its folder, or in the bucket of its spec."""
    if not s3:
        return DirectoryAddress(root=str(folder.store))
    run = Run(resource, ())
    store = run.store
    return BucketAddress(bucket=store.bucket, prefix=run.prefix, endpoint=store.endpoint, region=store.region)


@contextmanager
def _backend(folder: RunFolder, options: Options) -> Iterator[LocalBackend]:
    """The backend, closed at the end with its processes."""
    backend = LocalBackend(folder.path, max_concurrent=options.max_concurrent)
    try:
        yield backend
    finally:
        backend.close()


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
