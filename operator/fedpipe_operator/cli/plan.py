"""`fedpipe plan`: measure the sites, print each one's plan and why, and train nothing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedpipe_operator import names
from fedpipe_operator.cli.here import S3, Options, endings, load_one, taken_up, volumes_beside
from fedpipe_operator.local.session import Session
from fedpipe_operator.planning import PlanRow, Plans, plan_rows
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.store.objects import required_object


def command(
    paths: Annotated[list[Path], typer.Argument(help="YAML files or folders: EdgeSites and one FederatedFineTune.")],
    output: Annotated[Path, typer.Option(help="Where the run's folder is made.")] = Path("runs"),
    volumes: Annotated[Path | None, typer.Option(help="Folder for the PersistentVolumeClaims; default: volumes/ beside the YAML.")] = None,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Sites measured at the same time, as far as their claimed cores fit.")] = 2,
    s3: S3 = False,
) -> None:
    """Measure the sites and explain the plan. `fedpipe run` goes on from there and does not measure again."""
    resource, sites = load_one(paths)
    console = Console()
    options = Options(output, volumes or volumes_beside(paths[0]), max_concurrent, s3=s3)
    with endings(console), taken_up(resource, sites, options, console) as here:
        here.drive({"run": here.session}, until=_is_planned)
        session = here.session
        if session.failure is not None:
            console.print(f"failed: {session.failure}", style="red", soft_wrap=True)
            raise typer.Exit(1)
        plan = here.patiently(lambda: required_object(session.store, names.round_plan(1), RoundPlan))
    _print(plan, console)


def _is_planned(session: Session) -> bool:
    return session.over or session.store.read(names.round_plan(1)) is not None


def _print(plan: RoundPlan, console: Console) -> None:
    """A table of the plans, then each site's reasons."""
    table_rows = plan_rows(Plans(plans=plan.plans, excluded=plan.excluded))
    table = Table("site", "bits", "batch", "rank", "weights", "steps", "memory", "a round", "upload")
    for row in table_rows:
        if row.bits:
            table.add_row(row.site, row.bits, row.batch, row.rank, row.adapters, row.steps, row.memory, row.duration, row.upload)
    console.print(table)
    for row in table_rows:
        _print_why(row, console)


def _print_why(row: PlanRow, console: Console) -> None:
    console.print(row.site if row.bits else f"{row.site} is left out", style="bold" if row.bits else "yellow")
    for sentence in row.why:
        console.print(f"  {sentence}", soft_wrap=True, highlight=False)
