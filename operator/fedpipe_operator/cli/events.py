"""`fedpipe events`: the events of a run on a cluster, of its Jobs and of their pods, oldest first."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from fedpipe_operator.api.meta import LABEL_RUN_UID
from fedpipe_operator.cli.cluster_run import ClusterRun, Context, Name, Namespace, find_run
from fedpipe_operator.cli.local_run import exit_on_errors
from fedpipe_operator.cluster.api import EVENTS, JOBS, PODS

Body = Mapping[str, Any]


def command(name: Name, namespace: Namespace = None, context: Context = None) -> None:
    """Print the events of a run on a cluster, of its Jobs and of their pods, oldest first. The API server keeps them for an hour or so."""
    console = Console()
    with exit_on_errors(console):
        run = find_run(name, namespace, context)
        own = _uids(run)
        events = [one for one in run.api.find(EVENTS, run.namespace) if one["involvedObject"].get("uid") in own]
    for event in sorted(events, key=last_seen):
        console.print(Text(line(event), style="yellow" if event.get("type") == "Warning" else ""), soft_wrap=True)
    if not events:
        console.print("there are no events: the API server has kept none")


def _uids(run: ClusterRun) -> set[str]:
    """Of the run's object, its Jobs and their pods."""
    uid = run.resource.metadata.uid
    found = (one for kind in (JOBS, PODS) for one in run.api.find(kind, run.namespace, labels={LABEL_RUN_UID: uid}, may_be_old=True))
    return {uid, *(one["metadata"]["uid"] for one in found)}


def last_seen(event: Body) -> str:
    """When the event occurred last, as the API writes times; newer events of a series have only `eventTime`."""
    times = (event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((time for time in times if time), "")


def line(event: Body) -> str:
    """An event in one line."""
    about, times = event["involvedObject"], event.get("count") or 1
    subject = f"{about.get('kind', '')}/{about.get('name', '')}"
    often = f" ({times} times)" if times > 1 else ""
    return f"{last_seen(event)[:19]}  {event.get('reason', '')}  {subject}: {event.get('message', '')}{often}"
