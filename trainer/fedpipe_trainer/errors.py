"""The exceptions with which a recipe ends early on purpose. Of others `library_failures` knows some; the rest is `Unexpected`."""

from fedpipe_trainer.contract import FailureReason


class TaskFailed(Exception):  # noqa: N818 - named after the outcome in the result
    """The task failed: a reason for the operator and a message for a person, both reported in the result."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Terminated(Exception):  # noqa: N818 - stopping on request is not an error
    """Raised by a recipe that was requested to stop, after it wrote its checkpoint: another attempt resumes from there."""
