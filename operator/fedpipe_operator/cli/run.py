"""`fedpipe run`: a whole run on this machine, from the same YAML as on a cluster."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from fedpipe_operator import names
from fedpipe_operator.api import primary_metric
from fedpipe_operator.cli.files import volumes_beside
from fedpipe_operator.cli.local_run import S3, Fresh, LocalRun, MaxSteps, Options, Rounds, exit_on_errors, load_run, open_run, override
from fedpipe_operator.local.session import compare as write_comparison
from fedpipe_operator.local.session import local_only_sessions
from fedpipe_operator.report import comparison_table, read_record, samples_table, write_report
from fedpipe_operator.report.facts import headline, shown_samples, train_samples
from fedpipe_operator.report.record import RunRecord
from fedpipe_operator.store.address import DirectoryAddress
from fedpipe_operator.tracking.trackers import Trackers

_TRACKING_SECONDS: Final = 60.0
"""So long a run that is over waits for its trackers; running the same command again goes on with them."""


def command(
    paths: Annotated[list[Path], typer.Argument(help="YAML files or folders: EdgeSites and one FederatedFineTune.")],
    output: Annotated[Path, typer.Option(help="Folder for runs; this one uses OUTPUT/NAMESPACE/NAME.")] = Path("runs"),
    volumes: Annotated[Path | None, typer.Option(help="Folder for the PersistentVolumeClaims; default: volumes/ beside the YAML.")] = None,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Sites that train at the same time, if the claimed processors allow it.")] = 2,
    rounds: Rounds = None,
    max_steps: MaxSteps = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides training.seed.")] = None,
    fresh: Fresh = False,
    compare: Annotated[bool, typer.Option(help="At the end, also train a local-only baseline for each site, with the same budget.")] = True,
    s3: S3 = False,
) -> None:
    """Run a fine-tune on this machine. Ctrl-C stops it; the same command resumes it."""
    resource, sites = load_run(paths)
    resource = override(resource, rounds=rounds, max_steps=max_steps, seed=seed)
    options = Options(output, volumes or volumes_beside(paths[0]), max_concurrent, fresh, s3)
    console = Console()
    with exit_on_errors(console):
        with open_run(resource, sites, options, console) as run:
            _run_to_end(run, compare=compare)
            record = run.retry(lambda: _write_report(run))
        succeeded = _print_result(run, record, console)
    raise typer.Exit(0 if succeeded else 1)


def _run_to_end(run: LocalRun, *, compare: bool) -> None:
    """The run with its trackers, and then the local-only baselines."""
    run.session.trackers = Trackers(believes_status=False)  # the spec may have been edited, and has no generation
    run.drive({"run": run.session})
    run.track(_TRACKING_SECONDS)
    if compare and run.session.failure is None:
        _compare(run)


def _compare(run: LocalRun) -> None:
    """The local-only baselines of the sites whose policies allow one."""
    denied = [site.name for site in run.session.run.sites if not site.spec.policy.local_baseline]
    if denied:
        run.display.line(f"no local-only baseline of {', '.join(denied)}: policy.localBaseline of the EdgeSite is false")
    baselines = run.retry(lambda: local_only_sessions(run.session))
    if baselines:
        run.display.line("local-only baselines, each site with the same budget:")
        run.drive(baselines)
        run.retry(lambda: write_comparison(run.session, baselines))


def _write_report(run: LocalRun) -> RunRecord:
    """Read the record of the run from its store, and write its report there."""
    record = read_record(run.session.run.resource, run.session.store)
    run.session.store.write(names.REPORT, write_report(record).encode())
    return record


def _print_result(run: LocalRun, record: RunRecord, console: Console) -> bool:
    """Print how the run ended and where its results are; whether it succeeded."""
    session = run.session
    if session.failure is not None:
        console.print(f"failed: {session.failure}", style="red", soft_wrap=True)
        console.print(f"logs: {run.folder.path / 'jobs'}; correct the cause, then start over with --fresh", soft_wrap=True)
        return False
    if record.comparison is not None:
        console.print(comparison_table(record.comparison, primary_metric(session.run.spec), train_samples(record)))
    console.print(headline(record), soft_wrap=True)
    if samples := [sample for _, sample in shown_samples(record)]:
        console.print(samples_table(samples, marked=session.run.spec.task.has_right_answers))
    location = session.address.root if isinstance(session.address, DirectoryAddress) else session.address.url
    export = session.run.spec.export
    written = {names.EXPORT_ADAPTER: export.adapter, names.EXPORT_MERGED: export.merged, names.REPORT: True}
    for name in (name for name, is_there in written.items() if is_there):
        console.print(f"{name:<16} {location}/{name}", soft_wrap=True)
    return True
