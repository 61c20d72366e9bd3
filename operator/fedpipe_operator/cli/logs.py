"""`fedpipe logs`: the logs of a run's pods on a cluster, each line with its task, round and site; with `--follow` until the run ends."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from time import sleep
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.console import Console

from fedpipe_operator.admission import clean_message
from fedpipe_operator.api.meta import LABEL_ATTEMPT, LABEL_ROUND, LABEL_RUN_UID, LABEL_SITE, LABEL_TASK
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.cli.cluster_run import ClusterRun, Context, Name, Namespace, find_run
from fedpipe_operator.cli.followed_log import (
    OPERATOR_LABELS,
    Line,
    Position,
    about_run,
    has_ended,
    is_operator,
    is_readable,
    pause_seconds,
    read_on,
)
from fedpipe_operator.cli.local_run import INTERRUPTED, exit_on_errors
from fedpipe_operator.cluster.api import PODS
from fedpipe_operator.cluster.api_errors import REFUSED
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.manifests.jobs import TRAINER, WORKER
from fedpipe_operator.rounds import is_over

Body = Mapping[str, Any]

OPERATOR: Final = "operator"
"""The container of the operator's pod."""
_NO_PODS: Final = "there are no such pods: they have not started, or their Jobs have been deleted (jobTtlSeconds)"
_OPERATOR_LINES: Final = 1000
"""So many of an operator's last lines are searched for those about the run."""


def command(
    name: Name,
    namespace: Namespace = None,
    context: Context = None,
    site: Annotated[str | None, typer.Option(help="Only the pods of this site.")] = None,
    round_: Annotated[int | None, typer.Option("--round", min=0, help="Only the pods of this round; 0: profiles and the export.")] = None,
    tail: Annotated[int, typer.Option(min=1, help="The last lines of each pod.")] = 100,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Until the run has ended, also of pods that start later, and the operator's lines about the run."
        ),
    ] = False,
    operator_namespace: Annotated[
        str | None, typer.Option(help="With --follow: where the operator runs; default: it is looked for in all namespaces.")
    ] = None,
) -> None:
    """Print the logs of a run's pods on a cluster, as long as their Jobs are kept (jobTtlSeconds of the chart)."""
    console = Console()
    with exit_on_errors(console):
        run = find_run(name, namespace, context)
        wanted = {LABEL_RUN_UID: run.resource.metadata.uid}
        wanted |= {LABEL_SITE: site} if site is not None else {}
        wanted |= {LABEL_ROUND: str(round_)} if round_ is not None else {}
        if not follow:
            _print(run, wanted, tail, console)
            return
        is_of_all = site is None and round_ is None
        try:
            _follow(Follower(run, wanted, tail, (operator_namespace or "") if is_of_all else None))
        except KeyboardInterrupt:  # quietly, as kubectl ends
            raise typer.Exit(INTERRUPTED) from None


def _print(run: ClusterRun, wanted: Mapping[str, str], tail: int, console: Console) -> None:
    """The last lines of each pod, one pod after another."""
    pods = sorted(run.api.find(PODS, run.namespace, labels=wanted), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    for pod in pods:
        log = run.api.log(run.namespace, pod["metadata"]["name"], container(pod), lines=tail)
        for line in shown(log):
            typer.echo(f"{prefix(pod)} {line}")
    if not pods:
        console.print(_NO_PODS)


class Source(NamedTuple):
    """A pod whose log is followed."""

    pod: Body
    container: str
    prefix: str
    is_operator: bool

    @property
    def uid(self) -> str:
        """The pod's."""
        return str(self.pod["metadata"]["uid"])


@dataclass
class Follower:
    """A run whose logs are followed, and how far each was read."""

    run: ClusterRun
    wanted: Mapping[str, str]
    """The labels of its pods."""
    tail: int
    operators_in: str | None
    """The namespace of the operator, empty: any; None: its lines are not wanted."""
    positions: dict[str, Position] = field(default_factory=dict)
    """By the pod's uid."""
    ended: set[str] = field(default_factory=set)
    """The uids of pods that were read to their end."""
    has_begun: bool = False
    """Whether the logs were read once: a pod that is new after that has just started, and all that it wrote is shown."""
    is_behind: bool = False
    """Whether a pod that has ended wrote more than was read at once."""
    outage: str = ""
    """What request had no answer when the logs were read last; what it would have said is read the next time."""

    def read(self) -> tuple[list[str], int]:
        """The new lines of all logs, by their times, and how many logs were read.

        Raises:
            UserError: `RunMissing`, the run was deleted; or what the API raises where the user lacks a right.
        """
        self.outage, self.is_behind = "", False
        try:
            self.run = self._newest()
            sources = [one for one in self._sources() if one.uid not in self.ended and is_readable(one.pod, one.container)]
        except TransientError as error:
            self.outage = str(error)
            return [], 0
        found = [(line.time, f"{one.prefix} {text}") for one in sources for line in self._lines(one) for text in shown(line.text)]
        self.has_begun = True
        return [text for _, text in sorted(found, key=lambda one: one[0])], len(sources)

    def _newest(self) -> ClusterRun:
        newest, uid = self.run.newest(), self.run.resource.metadata.uid
        if newest.resource.metadata.uid != uid:
            what = f"the FederatedFineTune {newest.namespace}/{newest.name} was deleted, and another of its name created"
            raise UserError("RunMissing", f"{what}: the same command follows that")
        return newest

    def _sources(self) -> list[Source]:
        pods = self.run.api.find(PODS, self.run.namespace, labels=self.wanted, may_be_old=True)
        operators = [Source(pod, OPERATOR, f"[{OPERATOR} {pod['metadata']['namespace']}]", is_operator=True) for pod in self._operators()]
        return [*(Source(pod, container(pod), prefix(pod), is_operator=False) for pod in pods), *operators]

    def _operators(self) -> list[Body]:
        """The operator's pods; without the right to see them, those of the run alone are followed."""
        if self.operators_in is None:
            return []
        try:
            found = self.run.api.find(PODS, self.operators_in, labels=OPERATOR_LABELS, may_be_old=True)
        except UserError as error:
            if error.reason != "ApiForbidden":
                raise
            self._do_without_operators("list pods", "; give the operator's by --operator-namespace" if not self.operators_in else "")
            return []
        return [pod for pod in found if is_operator(pod)]

    def _do_without_operators(self, right: str, advice: str) -> None:
        where = f"in the namespace {self.operators_in}" if self.operators_in else "in all namespaces"
        typer.echo(f"without the operator's lines: your user may not {right} {where}{advice}", err=True)
        self.operators_in = None

    def _lines(self, source: Source) -> list[Line]:
        """What is new in a pod's log; of an operator's, about the run."""
        at, is_whole = self.positions.get(source.uid, Position()), has_ended(source.pod, source.container)
        read = self._read(source, at)
        if read is None:
            return []
        log, is_cut = read
        new, self.positions[source.uid] = read_on(log, at, is_cut=is_cut, is_whole=is_whole)
        if is_whole and is_cut:
            self.is_behind = True
        elif is_whole:
            self.ended.add(source.uid)
        if not source.is_operator:
            return new
        about = list(about_run(new, self.run.resource.metadata.uid))
        return about if self.has_begun else about[-self.tail :]

    def _read(self, source: Source, at: Position) -> tuple[str, bool] | None:
        """The log from the position on; None if it cannot be read now."""
        meta, last = source.pod["metadata"], _OPERATOR_LINES if source.is_operator else self.tail
        lines = None if self.has_begun else last
        try:
            return self.run.api.log_since(meta["namespace"], meta["name"], source.container, since=at.since, lines=lines)
        except TransientError as error:
            self.outage = str(error)
        except UserError as error:
            if source.is_operator and error.reason == "ApiForbidden":
                self._do_without_operators("read logs", "")
            elif error.reason != REFUSED:  # a container that has just been replaced
                raise
        return None


def _follow(follower: Follower) -> None:
    """Print what is new until the run has ended, and once more, for what was written of its end."""
    is_last, told = is_over(follower.run.resource), ""
    for attempt in count():
        lines, logs = follower.read()
        if attempt == 0 and not logs:
            typer.echo(_NO_PODS, err=True)
        for line in lines:
            typer.echo(line)
        if follower.outage not in ("", told):
            typer.echo(follower.outage, err=True)
        told = follower.outage
        if is_last and not follower.outage and not follower.is_behind:
            return
        is_last = is_over(follower.run.resource)
        sleep(pause_seconds(logs))


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
