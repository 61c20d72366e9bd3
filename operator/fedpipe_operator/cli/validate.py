"""`fedpipe validate`: check YAML files without running anything, and with --data the data that they name."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_operator.cli.files import Objects, read, volumes_beside
from fedpipe_operator.errors import UserError


def command(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="YAML files, or folders whose *.yaml and *.yml files are read.")],
    data: Annotated[
        bool, typer.Option("--data", help="Also read each site's data on this machine, as its profile would: rows, labels, tokens.")
    ] = False,
    site: Annotated[list[str] | None, typer.Option(help="With --data: check this site only; may be given more than once.")] = None,
    volumes: Annotated[
        Path | None, typer.Option(help="With --data: folder for the PersistentVolumeClaims; default: volumes/ beside the YAML.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="With --data: the folder with the data of one site, in place of its volume.")] = None,
) -> None:
    """Print every problem in these files: where it is, what is wrong, and what to do. The exit status is 2 if there is one."""
    objects, problems = read(paths)
    for problem in problems:
        typer.echo(str(problem))
    if problems:
        raise typer.Exit(2)
    for one in objects.sites:
        typer.echo(f"{one.kind} {one.name}: valid")
    for run in objects.runs:
        typer.echo(f"{run.kind} {run.metadata.name}: valid")
    if data:
        _check_data(objects, volumes or volumes_beside(paths[0]), folder, site or [])
    elif site or volumes or folder:
        typer.echo("--site, --volumes and --folder say which data are checked: add --data", err=True)
        raise typer.Exit(2)


def _check_data(objects: Objects, volumes: Path, folder: Path | None, sites: list[str]) -> None:
    from fedpipe_operator.cli.check_data import Where, check_data  # noqa: PLC0415 - the files alone need a tenth of its imports

    try:
        is_good = check_data(objects, Where(volumes, folder, tuple(sites)))
    except UserError as error:
        typer.echo(f"{error.reason}: {error.message}", err=True)
        raise typer.Exit(1) from None
    if not is_good:
        raise typer.Exit(2)
