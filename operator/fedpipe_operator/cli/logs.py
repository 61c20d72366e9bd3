"""`fedpipe logs`: the logs of a run's pods on a cluster, each line with its task, round and site."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from fedpipe_operator.admission import clean_message
from fedpipe_operator.api.meta import LABEL_ATTEMPT, LABEL_ROUND, LABEL_RUN_UID, LABEL_SITE, LABEL_TASK
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.cli.cluster_run import Context, Name, Namespace, find_run
from fedpipe_operator.cli.local_run import exit_on_errors
from fedpipe_operator.cluster.api import PODS
from fedpipe_operator.manifests.jobs import TRAINER, WORKER

Body = Mapping[str, Any]


def command(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    site: Annotated[str | None, typer.Option(help="Only the pods of this site.")] = None,
    round_: Annotated[int | None, typer.Option("--round", min=0, help="Only the pods of this round; 0: profiles and the export.")] = None,
    tail: Annotated[int, typer.Option(min=1, help="The last lines of each pod.")] = 100,
) -> None:
    """Print the logs of a run's pods on a cluster, as long as their Jobs are kept (jobTtlSeconds of the chart)."""
    console = Console()
    with exit_on_errors(console):
        run = find_run(name, namespace, context)
        wanted = {LABEL_RUN_UID: run.resource.metadata.uid}
        wanted |= {LABEL_SITE: site} if site is not None else {}
        wanted |= {LABEL_ROUND: str(round_)} if round_ is not None else {}
        pods = sorted(run.api.find(PODS, run.namespace, labels=wanted), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        for pod in pods:
            log = run.api.log(run.namespace, pod["metadata"]["name"], container(pod), lines=tail)
            for line in shown(log):
                typer.echo(f"{prefix(pod)} {line}")
    if not pods:
        console.print("there are no such pods: they have not started, or their Jobs have been deleted (jobTtlSeconds)")


def prefix(pod: Body) -> str:
    """Which task a pod belongs to, such as `[train r2 north a0]`."""
    labels = pod["metadata"].get("labels", {})
    round_ = labels.get(LABEL_ROUND, "0")
    parts = (labels.get(LABEL_TASK), "" if round_ == "0" else f"r{round_}", labels.get(LABEL_SITE), f"a{labels.get(LABEL_ATTEMPT, '0')}")
    return f"[{' '.join(part for part in parts if part)}]"


def container(pod: Body) -> str:
    """The pod's container of FedPipe: a cluster may inject others."""
    return WORKER if pod["metadata"].get("labels", {}).get(LABEL_TASK) == TaskKind.AGGREGATE else TRAINER


def shown(log: str) -> Iterator[str]:
    """A pod's log as people read it: of a line in JSON the time, the severity and the message.

    A site wrote it, so nothing that steers a terminal is shown.
    """
    for line in log.split("\n"):
        for part in _parts(line):
            if part:
                yield clean_message(part)


def _parts(line: str) -> list[str]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return [line]
    if not isinstance(document, dict) or "message" not in document:
        return [line]
    about = f"{document.get('timestamp', '')} {str(document.get('severity', '')).upper():<7} {document['message']}"
    return [about.strip(), *str(document.get("exception", "")).split("\n")]
