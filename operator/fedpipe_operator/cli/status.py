"""`fedpipe status`: what a run on a cluster is doing, its plans and its rounds; with `--watch` until it has ended."""

from time import sleep
from typing import Annotated, Final

import typer
from rich.console import Console

from fedpipe_operator.api import ConditionStatus, ConditionType, FederatedFineTune
from fedpipe_operator.api.meta import LABEL_RUN_UID
from fedpipe_operator.backend import JobState, JobStatus
from fedpipe_operator.cli.cluster_run import ClusterRun, Context, Name, Namespace, find_run
from fedpipe_operator.cli.display import Display
from fedpipe_operator.cli.local_run import exit_on_errors
from fedpipe_operator.cluster import KubeJob, kube_job
from fedpipe_operator.cluster.api import JOBS
from fedpipe_operator.errors import TransientError
from fedpipe_operator.rounds import is_over

_POLL_SECONDS: Final = 2.0


def command(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the run until it has ended; exit status 1 if it failed.")] = False,
) -> None:
    """Show what a run on a cluster is doing, each site's plan, and the rounds so far."""
    console = Console()
    with exit_on_errors(console):
        run = find_run(name, namespace, context)
        with Display(console) as display:
            shown = _show(run, display, shown="")
            while watch and not is_over(run.resource):
                sleep(_POLL_SECONDS)
                run = _newest(run, display)
                shown = _show(run, display, shown)
    raise typer.Exit(watch and _is_true(run.resource, ConditionType.FAILED))


def _newest(run: ClusterRun, display: Display) -> ClusterRun:
    """The run as it is now; a lost request is displayed, and no reason to stop."""
    try:
        return run.newest()
    except TransientError as error:
        display.line(f"{error.reason}: {error.message}", style="yellow")
        return run


def _show(run: ClusterRun, display: Display, shown: str) -> str:
    """Show the run, and what it is doing unless that was shown last; what it is doing."""
    doing = summary(run.resource)
    jobs = run.api.find(JOBS, run.namespace, labels={LABEL_RUN_UID: run.resource.metadata.uid}, may_be_old=True)
    if doing != shown:
        display.line(doing)
    display.status(run.resource.status)
    display.jobs({job.job.name: job_status(job) for job in map(kube_job, jobs) if job is not None and job.is_active})
    return doing


def summary(resource: FederatedFineTune) -> str:
    """What the run is doing, in one line."""
    status, meta = resource.status, resource.metadata
    ready = next((one for one in status.conditions if one.type == ConditionType.READY), None)
    if ready is None or status.observed_generation < meta.generation:
        return f"{meta.namespace}/{meta.name}: no operator has seen this version of it yet"
    round_ = f", round {status.round} of {resource.spec.rounds.count}" if status.round else ""
    updates = f", {status.updates.received} of {status.updates.needed} needed updates" if status.updates else ""
    message = f": {ready.message}" if ready.message else ""
    return f"{meta.namespace}/{meta.name}: {ready.reason}{round_}{updates}{message}"


def job_status(job: KubeJob) -> JobStatus:
    """A Job that has not ended, as a line of the display."""
    return JobStatus(job.job, JobState.RUNNING if job.ready else JobState.PENDING, job.created_at)


def _is_true(resource: FederatedFineTune, kind: ConditionType) -> bool:
    return any(one.type == kind and one.status is ConditionStatus.TRUE for one in resource.status.conditions)
