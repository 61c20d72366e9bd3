"""Live progress of a run: a line for each site while its job runs, and a line for each completed round.

On a terminal the lines of the sites are redrawn in place. Elsewhere (a log, a pipe) there is one line for each job when it ends.
"""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpipe_operator.api import FineTuneStatus, MetricStatus, PlanStatus, RoundStatus
from fedpipe_operator.backend import JobState, JobStatus
from fedpipe_operator.formatting import bytes_text, metric_text, seconds_text
from fedpipe_operator.planning import hyperparameter_text
from fedpipe_operator.rounds import Event
from fedpipe_operator.rounds.kinds import KINDS


class Display:
    """Prints the progress of a run. A context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._plans: dict[str, PlanStatus] = {}
        self._printed_rounds: set[int] = set()
        self._printed_jobs: set[str] = set()
        self._printed_plans: dict[str, PlanStatus] = {}
        self._printed_hyperparameters: set[str] = set()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def line(self, text: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def event(self, event: Event) -> None:
        """Print a warning event, which may need action. Other events are covered by the lines of rounds and sites."""
        if event.warning:
            self.line(f"{event.reason}: {event.message}", style="yellow")

    def status(self, status: FineTuneStatus) -> None:
        """Print hyperparameters and plans when they change, and a line for every new round."""
        for text in map(hyperparameter_text, status.hyperparameters):
            if text not in self._printed_hyperparameters:
                self._printed_hyperparameters.add(text)
                self.line(f"  {text}")
        self._plans = {plan.site: plan for plan in status.plans}
        if self._plans != self._printed_plans and self._plans:
            self._printed_plans = self._plans
            for plan in status.plans:
                self.line(f"  {plan.site:<14} plan: {plan_text(plan)}")
            for site, why in status.excluded.items():
                self.line(f"  {site:<14} excluded: {why}", style="yellow")
        for entry in status.history:
            if entry.round not in self._printed_rounds:
                self._printed_rounds.add(entry.round)
                self.line(_round_line(entry, status.metric), style="bold")

    def jobs(self, jobs: Mapping[str, JobStatus]) -> None:
        """Redraw the lines of the sites; in a log, print a line for every job that ended."""
        if self._live:
            self._live.update(self._table(_newest_by_site(jobs.values())))
            return
        for name, status in jobs.items():
            if name not in self._printed_jobs and status.state in (JobState.SUCCEEDED, JobState.FAILED):
                self._printed_jobs.add(name)
                self.line(_job_line(status), style="" if status.state is JobState.SUCCEEDED else "yellow")

    def _table(self, newest: Mapping[str, JobStatus]) -> Group:
        table = Table.grid(padding=(0, 2))
        for site, status in sorted(newest.items()):
            plan = self._plans.get(site)
            table.add_row(site or "(run)", plan_text(plan) if plan else "", *_cells(status))
        return Group(table)


def plan_text(plan: PlanStatus) -> str:
    """A plan in one line."""
    return f"{plan.bits} bits, rank {plan.rank} on {plan.adapters} weights, batch {plan.batch_size}, {plan.steps} steps"


def _round_line(entry: RoundStatus, metric: MetricStatus | None) -> str:
    value = f"{metric.name} {metric_text(metric.name, entry.metric)}" if metric else "no metric"
    return (
        f"round {entry.round}: {entry.updates} updates, {value}, {seconds_text(entry.seconds)}, "
        f"{bytes_text(entry.uploaded_bytes)} received, {entry.truncated_energy:.2%} energy truncated"
    )


def _job_line(status: JobStatus) -> str:
    site = status.job.site or "run"
    line = f"  {site:<14} {status.job.kind} of round {status.job.round}: {', '.join(filter(None, _cells(status)))}"
    return line if status.state is JobState.SUCCEEDED else f"{line} ({status.reason}: {status.message})"


def _cells(status: JobStatus) -> tuple[str, str, str, str]:
    """State, step, loss and tokens per second of a job."""
    progress = status.progress
    state = KINDS[status.job.kind].activity if status.state is JobState.RUNNING else status.state.lower()
    if progress is None:
        return state, "", "", ""
    step = f"{progress.phase} {progress.step}/{progress.steps}" if progress.steps else progress.phase
    loss = f"loss {progress.loss:.3f}" if progress.loss is not None else ""
    speed = f"{progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second is not None else ""
    return state, step, loss, speed


def _newest_by_site(jobs: Iterable[JobStatus]) -> dict[str, JobStatus]:
    """By site, its running job, or if none runs the one that started last."""
    order = sorted(jobs, key=lambda status: (status.state is JobState.RUNNING, status.started_at))
    return {status.job.site: status for status in order}
