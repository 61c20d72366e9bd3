"""`fedpipe validate`: check YAML files without running anything."""

from pathlib import Path
from typing import Annotated

import typer

from fedpipe_operator.cli.files import read


def command(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", help="YAML files, or folders whose *.yaml and *.yml files are read.")],
) -> None:
    """Print every problem in these files: where it is, what is wrong, and what to do. The exit status is 2 if there is one."""
    objects, problems = read(paths)
    for problem in problems:
        typer.echo(str(problem))
    if problems:
        raise typer.Exit(2)
    for site in objects.sites:
        typer.echo(f"{site.kind} {site.name}: valid")
    for run in objects.runs:
        typer.echo(f"{run.kind} {run.metadata.name}: valid")
