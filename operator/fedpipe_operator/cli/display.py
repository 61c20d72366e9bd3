"""Live progress of a run: a line for each site while its job runs, and a line for each completed round.

On a terminal the lines of the sites are redrawn in place. Elsewhere (a log, a pipe) there is one line for each job when it ends.
"""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedpipe_operator.api import FineTuneStatus, MetricStatus, PlanStatus, ProgressStatus, Reason, RoundStatus
from fedpipe_operator.backend import JobState, JobStatus
from fedpipe_operator.formatting import bytes_text, metric_text, seconds_text
from fedpipe_operator.planning import hyperparameter_text
from fedpipe_operator.rounds import Event
from fedpipe_operator.rounds.kinds import KINDS
from fedpipe_operator.rounds.replanning import REPLANNED, REPLANNED_EVENT
from fedpipe_trainer.contract import ExitCode

_SITE: Final = 14
"""Columns of a site's name."""


class Display:
    """Prints the progress of a run. A context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._plans: dict[str, PlanStatus] = {}
        self._progress: ProgressStatus | None = None
        self._printed_rounds: set[int] = set()
        self._printed_jobs: set[str] = set()
        self._printed_plans: dict[str, tuple[str, str]] = {}
        """By site its plan in words, and the constraint that binds."""
        self._printed_excluded: dict[str, str] = {}
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
        """Print a warning event, which may need action, and for each site why it was planned anew: its plan was displayed before.

        Other events are covered by the lines of rounds and sites, as is that of sites without a plan.
        """
        if event.warning and event.reason != Reason.SITES_LEFT_OUT:
            self.line(f"{event.reason}: {event.message}", style="yellow")
        elif event.reason == REPLANNED_EVENT:
            for plan in self._plans.values():
                for note in (one for one in plan.why if one.startswith(REPLANNED)):
                    self.line(f"{event.reason}: {plan.site}: {note.removeprefix(REPLANNED)}")

    def status(self, status: FineTuneStatus) -> None:
        """Print hyperparameters and plans when they change, and a line for every new round."""
        for text in map(hyperparameter_text, status.hyperparameters):
            if text not in self._printed_hyperparameters:
                self._printed_hyperparameters.add(text)
                self.line(f"  {text}")
        self._plans = {plan.site: plan for plan in status.plans}
        self._show_progress(status.progress)
        if self._plans:
            self._print_plans(status)
        for entry in status.history:
            if entry.round not in self._printed_rounds:
                self._printed_rounds.add(entry.round)
                self.line(_round_line(entry, status.metric), style="bold")

    def _show_progress(self, progress: ProgressStatus | None) -> None:
        """Keep it for the last line of the terminal; in a log, print it at the beginning of a stage."""
        is_new_stage = progress is not None and (self._progress is None or self._progress.stage is not progress.stage)
        self._progress = progress
        if progress and is_new_stage and not self._live:
            self.line(progress_text(progress), style="dim")

    def _print_plans(self, status: FineTuneStatus) -> None:
        """Print the plans, each with what limits it, and the excluded sites, where they differ from those of the round before."""
        plans = {site: (_whole_plan_text(plan), plan.limited_by) for site, plan in self._plans.items()}
        new = [site for site, plan in plans.items() if plan != self._printed_plans.get(site)]
        if new:
            self.line(f"plans of round {status.round}:")
        for site in new:
            self.line(f"  {site:<{_SITE}} plan: {plans[site][0]}")
            if reason := _reason_text(self._plans[site]):
                self.line(f"  {'':<{_SITE}} {reason}", style="dim")
        for site, why in status.excluded.items():
            if why != self._printed_excluded.get(site):
                self.line(f"  {site:<{_SITE}} excluded: {why}", style="yellow")
        self._printed_plans, self._printed_excluded = plans, dict(status.excluded)

    def jobs(self, jobs: Mapping[str, JobStatus]) -> None:
        """Redraw the lines of the sites; in a log, print a line for every job that ended."""
        if self._live:
            self._live.update(self._table(_newest_by_site(jobs.values())))
            return
        for name, status in jobs.items():
            if name not in self._printed_jobs and status.state in (JobState.SUCCEEDED, JobState.FAILED):
                self._printed_jobs.add(name)
                needs_attention = status.state is JobState.FAILED and not _was_stopped(status)
                self.line(_job_line(status), style="yellow" if needs_attention else "")

    def _table(self, newest: Mapping[str, JobStatus]) -> Group:
        table = Table.grid(padding=(0, 2))
        for site, status in sorted(newest.items()):
            plan = self._plans.get(site)
            table.add_row(site or "(run)", plan_text(plan) if plan else "", *_cells(status))
        return Group(table, progress_text(self._progress)) if self._progress else Group(table)


def progress_text(progress: ProgressStatus) -> str:
    """How far the run is, in one line."""
    left = progress.estimated_remaining_seconds
    return f"{progress.stage}: {progress.percentage} % of the run" + (f", about {seconds_text(left)} left" if left else "")


def plan_text(plan: PlanStatus) -> str:
    """A plan in one line."""
    return f"{plan.bits} bits, rank {plan.rank} on {plan.adapters} weights, batch {plan.batch_size}, {plan.steps} steps"


def _reason_text(plan: PlanStatus) -> str:
    """What limits a plan: the first clause of its first reason, without what it is predicted to gain."""
    clause = plan.why[0].partition("; ")[0].partition(" (predicted ")[0] if plan.why else ""
    limit = f"limited by {plan.limited_by.lower()}" if plan.limited_by and not clause.startswith("limited by ") else ""
    return ": ".join(part for part in (limit, clause) if part)


def _whole_plan_text(plan: PlanStatus) -> str:
    """A plan in one line, with the trained layers where not all are."""
    layers = f", top {plan.layers} of {plan.model_layers} layers" if 0 < plan.layers < plan.model_layers else ""
    return f"{plan_text(plan)}{layers}"


def _round_line(entry: RoundStatus, metric: MetricStatus | None) -> str:
    value = f"{metric.name} {metric_text(metric.name, entry.metric)}" if metric else "no metric"
    return (
        f"round {entry.round}: {entry.updates} updates, {value}, {seconds_text(entry.seconds)}, "
        f"{bytes_text(entry.uploaded_bytes)} received, {entry.truncated_energy:.2%} energy truncated"
    )


def _was_stopped(status: JobStatus) -> bool:
    """Whether it ended on a request, as at Ctrl-C."""
    return status.exit_code == ExitCode.TERMINATED


def _job_line(status: JobStatus) -> str:
    site, round_ = status.job.site or "run", status.job.round
    task = f"{status.job.kind} of round {round_}" if round_ else status.job.kind  # profiles and the export belong to no round
    start = f"  {site:<{_SITE}} {task}: "
    if _was_stopped(status):
        return f"{start}stopped with the command; it is taken up again"
    line = start + ", ".join(filter(None, _cells(status)))
    return line if status.state is JobState.SUCCEEDED else f"{line} ({status.reason}: {status.message})"


def _cells(status: JobStatus) -> tuple[str, str, str, str]:
    """State, step, loss and tokens per second of a job."""
    progress = status.progress
    state = KINDS[status.job.kind].activity if status.state is JobState.RUNNING else status.state.lower()
    if progress is None:
        return state, "", "", ""
    step = f"{progress.phase} {progress.step}/{progress.steps}" if progress.steps else progress.phase
    if status.state is JobState.SUCCEEDED and not progress.step:
        step = ""  # a profile and an export report what they begin with: 0 of 3 would look like nothing done
    loss = f"loss {progress.loss:.3f}" if progress.loss is not None else ""
    speed = f"{progress.tokens_per_second:.0f} tokens/s" if progress.tokens_per_second is not None else ""
    return state, step, loss, speed


def _newest_by_site(jobs: Iterable[JobStatus]) -> dict[str, JobStatus]:
    """By site, its running job, or if none runs the one that started last."""
    order = sorted(jobs, key=lambda status: (status.state is JobState.RUNNING, status.started_at))
    return {status.job.site: status for status in order}
