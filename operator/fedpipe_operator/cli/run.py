"""`fedpipe run`: the whole of a run on this machine, from the same YAML as on a cluster."""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from fedpipe_operator import names
from fedpipe_operator.api import EdgeSite, FederatedFineTune, primary_metric
from fedpipe_operator.cli.display import Display
from fedpipe_operator.cli.files import load
from fedpipe_operator.errors import TellUser, TryAgain
from fedpipe_operator.local import LocalDoor
from fedpipe_operator.local.places import LocalMap
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.local.session import Session, compare, sessions_alone
from fedpipe_operator.report import closing_table, read_record, samples_of, samples_table, write_report
from fedpipe_operator.rounds import Run
from fedpipe_operator.store.address import BucketAddress, DirectoryAddress

_INTERRUPTED = 130
_TURN_SECONDS = 0.5
"""How often the sites' lines are redrawn; the loop itself is woken by jobs."""
_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Options:
    """What the command line says beside the YAML."""

    output: Path
    volumes: Path
    side_by_side: int
    fresh: bool
    compare: bool
    s3: bool


def command(  # noqa: PLR0913, PLR0917 -- the command line's own options
    paths: Annotated[list[Path], typer.Argument(help="YAML files or folders: EdgeSites and one FederatedFineTune.")],
    output: Annotated[Path, typer.Option(help="Where the run's folder is made.")] = Path("runs"),
    volumes: Annotated[Path | None, typer.Option(help="Folder that stands for the PersistentVolumeClaims; default: volumes/ beside the YAML.")] = None,
    side_by_side: Annotated[int, typer.Option(min=1, help="Sites at work at the same time.")] = 1,
    rounds: Annotated[int | None, typer.Option(min=1, help="Use this instead of rounds.count.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Use this instead of training.maxSteps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Use this instead of training.seed.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: remove what an earlier run of this name left.")] = False,
    compare: Annotated[bool, typer.Option(help="At the end, also train each site alone with the same budget.")] = True,
    s3: Annotated[bool, typer.Option("--s3", help="Use spec.store, with the key pair in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")] = False,
) -> None:
    """Run a fine-tune on this machine. Ctrl-C stops it cleanly; the same command goes on where it stopped."""
    objects = load(paths)
    if len(objects.runs) != 1:
        typer.echo(f"these files hold {len(objects.runs)} FederatedFineTunes; name files with exactly one", err=True)
        raise typer.Exit(2)
    resource = _changed(objects.runs[0], rounds=rounds, max_steps=max_steps, seed=seed)
    options = Options(output, volumes or _beside(paths[0]), side_by_side, fresh, compare, s3)
    console = Console()
    try:
        with _sigterm_as_interrupt():
            succeeded = run_here(resource, objects.sites, options, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        raise typer.Exit(_INTERRUPTED) from None
    except TellUser as error:
        typer.echo(f"{error.reason}: {error.message}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if succeeded else 1)


def run_here(resource: FederatedFineTune, sites: list[EdgeSite], options: Options, console: Console) -> bool:
    """Run it to its end, in a folder of its own; whether it succeeded."""
    folder = RunFolder(options.output, resource)
    with folder.locked():
        if options.fresh:
            folder.start_over()
        resource = folder.adopt()
        with _door(folder, options) as door, Display(console) as display:
            session = Session(
                run=Run(resource, matching(resource, sites)),
                door=door,
                map=LocalMap(options.volumes),
                address=_address(resource, folder, options),
                resumed_at=time.time(),
                on_status=lambda status: (folder.write_status(status), display.status(status)),
                on_event=display.event,
            )
            display.status(resource.status)
            drive({resource.metadata.name: session}, door, display)
            if session.failure is None and options.compare:
                display.line("each site alone, with the same budget:")
                alone = sessions_alone(session)
                drive(alone, door, display)
                compare(session, alone)
        return _close(session, folder, console)


def drive(sessions: Mapping[str, Session], door: LocalDoor, display: Display) -> None:
    """Turn every session until all are over."""
    while not all(session.over for session in sessions.values()):
        try:
            for session in sessions.values():
                session.turn()
        except TryAgain as error:
            display.line(f"{error.reason}: {error.message}; trying again", style="yellow")
            time.sleep(_RETRY_SECONDS)
        display.jobs(door.observe())
        if not all(session.over for session in sessions.values()):
            door.wait(_TURN_SECONDS)


def matching(resource: FederatedFineTune, sites: list[EdgeSite]) -> tuple[EdgeSite, ...]:
    """The run's sites: those of its namespace that carry the selector's labels, by name."""
    wanted = resource.spec.sites.selector.match_labels.items()
    ours = [site for site in sites if site.metadata.namespace == resource.metadata.namespace]
    return tuple(sorted((site for site in ours if wanted <= site.metadata.labels.items()), key=lambda site: site.name))


def _close(session: Session, folder: RunFolder, console: Console) -> bool:
    """Write the report, print the closing table, and say where everything is."""
    record = read_record(session.run.resource, session.store)
    session.store.write(names.REPORT, write_report(record).encode())
    if session.failure is not None:
        console.print(f"failed: {session.failure}", style="red", soft_wrap=True)
        console.print(f"logs: {folder.path / 'jobs'}; mend what is said and start over with --fresh", soft_wrap=True)
        return False
    if record.comparison is not None:
        console.print(closing_table(record.comparison, primary_metric(session.run.spec)))
    if samples := samples_of(record):
        console.print(samples_table(samples))
    where = folder.store if isinstance(session.address, DirectoryAddress) else session.address.prefix
    for name in (names.EXPORT_ADAPTER, names.EXPORT_MERGED, names.REPORT):
        console.print(f"{name:<16} {where}/{name}", soft_wrap=True)
    return True


def _address(resource: FederatedFineTune, folder: RunFolder, options: Options) -> DirectoryAddress | BucketAddress:
    if not options.s3:
        return DirectoryAddress(root=str(folder.store))
    store, meta = resource.spec.store, resource.metadata
    prefix = names.run_prefix(store.prefix, meta.namespace, meta.name, meta.uid)
    return BucketAddress(bucket=store.bucket, prefix=prefix, endpoint=store.endpoint, region=store.region)


def _changed(resource: FederatedFineTune, *, rounds: int | None, max_steps: int | None, seed: int | None) -> FederatedFineTune:
    """The run with what the command line says instead of its spec."""
    spec = resource.spec
    told_rounds = spec.rounds.model_copy(update={"count": rounds} if rounds is not None else {})
    training = {name: value for name, value in (("max_steps", max_steps), ("seed", seed)) if value is not None}
    changed = spec.model_copy(update={"rounds": told_rounds, "training": spec.training.model_copy(update=training)})
    return resource.model_copy(update={"spec": changed})


def _beside(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "volumes"


@contextmanager
def _door(folder: RunFolder, options: Options) -> Iterator[LocalDoor]:
    """The door onto this machine; its processes end with it."""
    door = LocalDoor(folder.jobs, options.side_by_side)
    try:
        yield door
    finally:
        door.close()


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
