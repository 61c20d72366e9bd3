"""`fedpipe plan`: profile the sites and print the plan of each with its reasons, without training."""

from pathlib import Path
from typing import Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedpipe_operator import names
from fedpipe_operator.cli.cluster_run import Context, Endpoint, OfCluster, find_run, name_of
from fedpipe_operator.cli.files import volumes_beside
from fedpipe_operator.cli.local_run import S3, Fresh, MaxSteps, Options, Rounds, exit_on_errors, load_run, open_run, override
from fedpipe_operator.errors import UserError
from fedpipe_operator.local.session import Session
from fedpipe_operator.planning import PlanRow, Plans, hyperparameter_text, plan_rows
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.store.objects import required_object


def command(
    paths: Annotated[list[Path], typer.Argument(help="YAML files or folders: EdgeSites and one FederatedFineTune; with -n, its name.")],
    output: Annotated[Path, typer.Option(help="Folder for runs; this one uses OUTPUT/NAMESPACE/NAME.")] = Path("runs"),
    volumes: Annotated[Path | None, typer.Option(help="Folder for the PersistentVolumeClaims; default: volumes/ beside the YAML.")] = None,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Sites profiled at the same time, if the claimed processors allow it.")] = 2,
    rounds: Rounds = None,
    max_steps: MaxSteps = None,
    fresh: Fresh = False,
    s3: S3 = False,
    namespace: OfCluster = None,
    context: Context = None,
    endpoint: Endpoint = None,
) -> None:
    """Profile the sites and explain their plans; a later `fedpipe run` uses these profiles, and with the same options these plans.

    With -n: of a run on a cluster.
    """
    console = Console()
    if namespace is not None:
        if rounds is not None or max_steps is not None:
            raise typer.BadParameter("--rounds and --max-steps change a plan that is made here: -n shows the one that a cluster's run has")
        _print_newest(paths, namespace, context, endpoint, console)
        return
    resource, sites = load_run(paths)
    resource = override(resource, rounds=rounds, max_steps=max_steps)
    options = Options(output, volumes or volumes_beside(paths[0]), max_concurrent, fresh, s3)
    with exit_on_errors(console), open_run(resource, sites, options, console) as run:
        run.drive({"run": run.session}, until=_is_planned)
        session = run.session
        if session.failure is not None:
            console.print(f"failed: {session.failure}", style="red", soft_wrap=True)
            raise typer.Exit(1)
        plan = run.retry(lambda: required_object(session.store, names.round_plan(1), RoundPlan))
    _print(plan, console)


def _print_newest(paths: list[Path], namespace: str, context: str | None, endpoint: str | None, console: Console) -> None:
    """Print the plan of the round under way of a run on a cluster."""
    with exit_on_errors(console):
        run = find_run(name_of(paths), namespace, context)
        if not run.resource.status.round:
            advice = f"fedpipe status {run.name} -n {namespace} says what it does"
            raise UserError("NotPlanned", f"{namespace}/{run.name} has no plan yet: {advice}")
        plan = required_object(run.open_store(endpoint), names.round_plan(run.resource.status.round), RoundPlan)
    _print(plan, console)


def _is_planned(session: Session) -> bool:
    return session.is_finished or session.store.read(names.round_plan(1)) is not None


_COLUMNS: Final = {
    "site": "site",
    "bits": "bits",
    "batch": "batch",
    "layers": "layers",
    "rank": "rank",
    "steps": "steps",
    "memory": "memory",
    "duration": "time",
    "limit": "limit",
}
"""Fields of a `PlanRow`, and the titles of their columns: as many as fit into 80 characters; the lines below say the rest."""
_LEGEND: Final = (
    "bits: of each number of the frozen base; batch: samples of a step; layers: trained ones of all; rank: size of the adapters, smallest "
    "to largest; limit: what keeps the site from doing more; predicted progress: what the planner expects a round of the site to be worth"
)
_MARKS: Final = {
    "*": "activations are recomputed in the backward pass",
    "†": "activations below the trained layers are read from the site's cache",
}


def _print(plan: RoundPlan, console: Console) -> None:
    """Print a table of the plans, then the hyperparameters and, for each site, its forecast, its ranks and the reasons."""
    table_rows = plan_rows(Plans(plans=plan.plans, excluded=plan.excluded), plan.importance)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title in _COLUMNS.values():
        table.add_column(title, no_wrap=True)
    for row in table_rows:
        if row.bits:
            table.add_row(*(getattr(row, column) for column in _COLUMNS))
    console.print(table)
    console.print(_LEGEND, style="dim", soft_wrap=True)
    used = [f"{mark} {meaning}" for mark, meaning in _MARKS.items() if any(mark in row.batch for row in table_rows)]
    if used:
        console.print("; ".join(used), style="dim")
    if excluded := [row.site for row in table_rows if not row.bits]:
        console.print(f"excluded, for the reasons at the end: {', '.join(excluded)}", style="yellow", soft_wrap=True)
    for note in plan.label_notes:
        console.print(note, style="yellow", soft_wrap=True, highlight=False, markup=False)
    for one in plan.hyperparameters:
        console.print(hyperparameter_text(one), soft_wrap=True, highlight=False, markup=False)
    for row in table_rows:
        _print_why(row, console)


def _print_why(row: PlanRow, console: Console) -> None:
    console.print(row.site if row.bits else f"{row.site} is excluded", style="bold" if row.bits else "yellow")
    # No markup: names of weights and sentences may have square brackets.
    for sentence in filter(None, (row.forecast, *row.ranks, *row.why)):
        console.print(f"  {sentence}", soft_wrap=True, highlight=False, markup=False)
