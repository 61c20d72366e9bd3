"""`fedpipe run`: the whole of a run on this machine, from the same YAML as on a cluster."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedpipe_operator import names
from fedpipe_operator.api import FederatedFineTune, primary_metric
from fedpipe_operator.cli.here import S3, Here, Options, endings, load_one, taken_up, volumes_beside
from fedpipe_operator.local.session import compare as write_comparison
from fedpipe_operator.local.session import local_only_sessions
from fedpipe_operator.report import comparison_table, read_record, samples_table, write_report
from fedpipe_operator.report.facts import shown_samples, train_samples
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.store.address import DirectoryAddress


def command(
    paths: Annotated[list[Path], typer.Argument(help="YAML files or folders: EdgeSites and one FederatedFineTune.")],
    output: Annotated[Path, typer.Option(help="Where the run's folder is made.")] = Path("runs"),
    volumes: Annotated[Path | None, typer.Option(help="Folder for the PersistentVolumeClaims; default: volumes/ beside the YAML.")] = None,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Sites at work at the same time, as far as their claimed cores fit.")] = 2,
    rounds: Annotated[int | None, typer.Option(min=1, help="Use this instead of rounds.count.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Use this instead of training.maxSteps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Use this instead of training.seed.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: remove what an earlier run of this name left.")] = False,
    compare: Annotated[bool, typer.Option(help="After the run, train each site's local-only baseline with the same budget.")] = True,
    s3: S3 = False,
) -> None:
    """Run a fine-tune on this machine. Ctrl-C stops it cleanly; the same command goes on where it stopped."""
    resource, sites = load_one(paths)
    changed = _changed(resource, rounds=rounds, max_steps=max_steps, seed=seed)
    options = Options(output, volumes or volumes_beside(paths[0]), max_concurrent, fresh, s3)
    console = Console()
    with endings(console):
        with taken_up(changed, sites, options, console) as here:
            _to_the_end(here, compare=compare)
            record = here.patiently(lambda: _reported(here))
        succeeded = _closed(here, record, console)
    raise typer.Exit(0 if succeeded else 1)


def _to_the_end(here: Here, *, compare: bool) -> None:
    """The run, then each site's local-only baseline."""
    here.drive({"run": here.session})
    if compare and here.session.failure is None:
        here.display.line("local-only baseline of each site, with the same budget:")
        baselines = here.patiently(lambda: local_only_sessions(here.session))
        here.drive(baselines)
        here.patiently(lambda: write_comparison(here.session, baselines))


def _reported(here: Here) -> RunRecord:
    """Read the run back from its store, and write its report there."""
    record = read_record(here.session.run.resource, here.session.store)
    here.session.store.write(names.REPORT, write_report(record).encode())
    return record


def _closed(here: Here, record: RunRecord, console: Console) -> bool:
    """Print how it ended and where everything is; whether it succeeded."""
    session = here.session
    if session.failure is not None:
        console.print(f"failed: {session.failure}", style="red", soft_wrap=True)
        console.print(f"logs: {here.folder.path / 'jobs'}; mend what is said, then start over with --fresh", soft_wrap=True)
        return False
    if record.comparison is not None:
        console.print(comparison_table(record.comparison, primary_metric(session.run.spec), train_samples(record)))
    if samples := [sample for _, sample in shown_samples(record)]:
        console.print(samples_table(samples, marked=session.run.spec.task.type == "SequenceClassification"))
    where = session.address.root if isinstance(session.address, DirectoryAddress) else session.address.url
    for name in (names.EXPORT_ADAPTER, names.EXPORT_MERGED, names.REPORT):
        console.print(f"{name:<16} {where}/{name}", soft_wrap=True)
    return True


def _changed(resource: FederatedFineTune, *, rounds: int | None, max_steps: int | None, seed: int | None) -> FederatedFineTune:
    """The run with what the command line says instead of its spec."""
    spec = resource.spec
    told_rounds = spec.rounds.model_copy(update={"count": rounds} if rounds is not None else {})
    training = {name: value for name, value in (("max_steps", max_steps), ("seed", seed)) if value is not None}
    changed = spec.model_copy(update={"rounds": told_rounds, "training": spec.training.model_copy(update=training)})
    return resource.model_copy(update={"spec": changed})
