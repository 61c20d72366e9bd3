"""`fedpipe report`: write the `report.html` of a run from its folder, also while the run is active."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_operator import names
from fedpipe_operator.cli.local_run import load_run
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.report import read_record, write_report
from fedpipe_operator.store import DirectoryStore


def command(
    paths: Annotated[list[Path], typer.Argument(help="YAML files or folders: EdgeSites and one FederatedFineTune.")],
    output: Annotated[Path, typer.Option(help="Folder for runs; this one uses OUTPUT/NAMESPACE/NAME.")] = Path("runs"),
) -> None:
    """Write report.html of a run that was started with `fedpipe run`."""
    resource, _ = load_run(paths)
    folder = RunFolder(output, resource)
    if not folder.store.exists():
        typer.echo(f"{folder.path} has no run of this name: start it with fedpipe run, or correct --output", err=True)
        raise typer.Exit(1)
    store = DirectoryStore(folder.store)
    store.write(names.REPORT, write_report(read_record(folder.read_only(), store)).encode())
    typer.echo(str(folder.store / names.REPORT))
