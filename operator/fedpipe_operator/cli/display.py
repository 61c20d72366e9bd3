"""Live progress of a run: a line per site while it works, a line per round when it is over.

On a terminal the sites' lines are redrawn in place. Elsewhere (a log, a pipe) every site has a line when its work
changes, so that a log stays readable.
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
from fedpipe_operator.rounds import Event
from fedpipe_operator.rounds.kinds import KINDS


class Display:
    """What a person sees of a run. Use with `with`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._plans: dict[str, PlanStatus] = {}
        self._told_rounds: set[int] = set()
        self._told_jobs: set[str] = set()
        self._told_plans: dict[str, PlanStatus] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def line(self, text: str, style: str = "") -> None:
        """One line that stays."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def event(self, event: Event) -> None:
        """One line for an event that a person may have to act on; the others show in the lines of rounds and sites."""
        if event.warning:
            self.line(f"{event.reason}: {event.message}", style="yellow")

    def status(self, status: FineTuneStatus) -> None:
        """Plans when they are new, and a line for every round that is over."""
        self._plans = {plan.site: plan for plan in status.plans}
        if self._plans != self._told_plans and self._plans:
            self._told_plans = self._plans
            for plan in status.plans:
                self.line(f"  {plan.site:<14} plan: {plan_text(plan)}")
            for site, why in status.excluded.items():
                self.line(f"  {site:<14} left out: {why}", style="yellow")
        for entry in status.history:
            if entry.round not in self._told_rounds:
                self._told_rounds.add(entry.round)
                self.line(_round_line(entry, status.metric), style="bold")

    def jobs(self, jobs: Mapping[str, JobStatus]) -> None:
        """The sites' lines."""
        if self._live:
            self._live.update(self._table(_newest_by_site(jobs.values())))
            return
        for name, seen in jobs.items():
            if name not in self._told_jobs and seen.state in (JobState.SUCCEEDED, JobState.FAILED):
                self._told_jobs.add(name)
                self.line(_job_line(seen), style="" if seen.state is JobState.SUCCEEDED else "yellow")

    def _table(self, newest: Mapping[str, JobStatus]) -> Group:
        table = Table.grid(padding=(0, 2))
        for site, seen in sorted(newest.items()):
            plan = self._plans.get(site)
            table.add_row(site or "(run)", plan_text(plan) if plan else "", *_cells(seen))
        return Group(table)


def plan_text(plan: PlanStatus) -> str:
    """A plan in a few words."""
    return f"{plan.bits} bits, rank {plan.rank} on {plan.adapters} weights, batch {plan.batch_size}, {plan.steps} steps"


def _round_line(entry: RoundStatus, metric: MetricStatus | None) -> str:
    value = f"{metric.name} {metric_text(metric.name, entry.metric)}" if metric else "no metric"
    return (
        f"round {entry.round}: {entry.updates} updates, {value}, {seconds_text(entry.seconds)}, "
        f"{bytes_text(entry.uploaded_bytes)} received, {entry.truncated_energy:.2%} energy cut"
    )


def _job_line(seen: JobStatus) -> str:
    where = seen.job.site or "run"
    done = f"  {where:<14} {seen.job.kind} of round {seen.job.round}: {', '.join(filter(None, _cells(seen)))}"
    return done if seen.state is JobState.SUCCEEDED else f"{done} ({seen.reason}: {seen.message})"


def _cells(seen: JobStatus) -> tuple[str, str, str, str]:
    """State, step, loss and speed of a job."""
    progress = seen.progress
    state = KINDS[seen.job.kind].verb if seen.state is JobState.RUNNING else seen.state.lower()
    if progress is None:
        return state, "", "", ""
    step = f"{progress.phase} {progress.step}/{progress.steps}" if progress.steps else progress.phase
    loss = f"loss {progress.loss:.3f}" if progress.loss is not None else ""
    speed = f"{progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second is not None else ""
    return state, step, loss, speed


def _newest_by_site(jobs: Iterable[JobStatus]) -> dict[str, JobStatus]:
    """Each site's job at work, else the one started last."""
    order = sorted(jobs, key=lambda seen: (seen.state is JobState.RUNNING, seen.started_at))
    return {seen.job.site: seen for seen in order}
