"""`fedpipe report`: draw a run's `report.html` from its folder, also while it is under way."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_operator import names
from fedpipe_operator.cli.here import load_one
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.report import read_record, write_report
from fedpipe_operator.store import DirectoryStore


def command(
    paths: Annotated[list[Path], typer.Argument(help="YAML files or folders: EdgeSites and one FederatedFineTune.")],
    output: Annotated[Path, typer.Option(help="Where the run's folder is.")] = Path("runs"),
) -> None:
    """Write report.html of a run that `fedpipe run` began."""
    resource, _ = load_one(paths)
    folder = RunFolder(output, resource)
    if not folder.store.exists():
        typer.echo(f"{folder.path} holds no run of this name: start it with fedpipe run, or correct --output", err=True)
        raise typer.Exit(1)
    store = DirectoryStore(folder.store)
    store.write(names.REPORT, write_report(read_record(folder.shown(), store)).encode())
    typer.echo(str(folder.store / names.REPORT))
