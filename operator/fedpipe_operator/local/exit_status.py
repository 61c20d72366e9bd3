"""What an exit status means: the state, the reason and the message of a job that ended. Pure but for a look at its log."""

import signal
from dataclasses import dataclass, replace
from pathlib import Path

from fedpipe_operator.backend import JobState, JobStatus
from fedpipe_operator.local.job_folder import last_line
from fedpipe_trainer.contract import ExitCode, FailureReason

CANNOT_RUN = 126
"""As a shell has it for a program that cannot be run."""
_KILLED = 128 + signal.SIGKILL
_REASONS = {int(reason.exit_code): str(reason) for reason in FailureReason} | {CANNOT_RUN: "CannotRun"}


@dataclass(frozen=True)
class End:
    """How a job ended: the status as a shell would tell it, and one CamelCase word if not well."""

    exit_code: int
    reason: str = ""


def end_of_task(exit_code: int) -> End:
    """What a trainer says of its task."""
    return End(exit_code, "" if exit_code == ExitCode.OK else _REASONS.get(exit_code, "Died"))


def end_of_process(status: int, *, for_memory: bool, serves: bool) -> End:
    """What the death of a process means for the task it was at; `status` is negative for a signal, as `Popen` has it."""
    if for_memory:
        return End(_KILLED, str(FailureReason.OUT_OF_MEMORY))
    if status == -signal.SIGKILL:
        return End(_KILLED, "Killed")
    if status == 0 and serves:
        # It left its task without a word: that is no success.
        return End(ExitCode.UNEXPECTED, "Died")
    return end_of_task(128 - status if status < 0 else status)


def ended(seen: JobStatus, end: End, logs: tuple[Path, ...]) -> JobStatus:
    """The job as it is seen from now on. What it failed of is the last line of the first log that has one."""
    state = JobState.FAILED if end.exit_code else JobState.SUCCEEDED
    said = next((f"{line} ({log})" for log in logs if (line := last_line(log))), f"nothing in {logs[0]}")
    message = f"exit code {end.exit_code}: {said}" if end.exit_code else ""
    return replace(seen, state=state, exit_code=end.exit_code, reason=end.reason, message=message)
