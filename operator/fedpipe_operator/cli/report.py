"""`fedpipe report`: write the `report.html` of a run from its folder, also while the run is active."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedpipe_operator import names
from fedpipe_operator.cli.cluster_run import Context, Endpoint, OfCluster, find_run, name_of
from fedpipe_operator.cli.local_run import exit_on_errors, load_run
from fedpipe_operator.cli.served_report import fetch
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.report import read_record, write_report
from fedpipe_operator.store import DirectoryStore


def command(
    paths: Annotated[list[Path], typer.Argument(help="YAML files or folders: EdgeSites and one FederatedFineTune; with -n, its name.")],
    output: Annotated[Path, typer.Option(help="Folder for runs; this one uses OUTPUT/NAMESPACE/NAME.")] = Path("runs"),
    namespace: OfCluster = None,
    context: Context = None,
    endpoint: Endpoint = None,
    server: Annotated[str | None, typer.Option(help="With -n: URL of the operator's server of reports; sends FEDPIPE_TOKEN there.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the report in a browser.")] = False,
) -> None:
    """Write report.html of a run that was started with `fedpipe run`, or with -n of one on a cluster."""
    if namespace is None:
        file = _write_of_folder(paths, output)
    else:
        with exit_on_errors(Console()):
            name = name_of(paths)
            page = _drawn(name, namespace, context, endpoint) if server is None else fetch(server, namespace, name)
        file = output / namespace / name / names.REPORT
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    typer.echo(str(file))
    if show:
        webbrowser.open(file.resolve().as_uri())


def _write_of_folder(paths: list[Path], output: Path) -> Path:
    """Write the report of a run of this machine into its store."""
    resource, _ = load_run(paths)
    folder = RunFolder(output, resource)
    if not folder.store.exists():
        typer.echo(f"{folder.path} has no run of this name: start it with fedpipe run, or correct --output", err=True)
        raise typer.Exit(1)
    store = DirectoryStore(folder.store)
    store.write(names.REPORT, write_report(read_record(folder.read_only(), store)).encode())
    return folder.store / names.REPORT


def _drawn(name: str, namespace: str, context: str | None, endpoint: str | None) -> str:
    """The report of a run on a cluster, as far as it has come, from its store."""
    run = find_run(name, namespace, context)
    return write_report(read_record(run.resource, run.open_store(endpoint)))
