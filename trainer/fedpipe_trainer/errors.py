"""The exceptions with which a recipe ends early on purpose. Of others `library_failures` knows some; the rest is `Unexpected`."""

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.printable import printable


class TaskFailed(Exception):  # noqa: N818 - named after the outcome in the result
    """The task failed: a reason for the operator and a message for a person, both reported in the result."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        self.reason = reason
        self.message = printable(message)
        super().__init__(self.message)


class Terminated(Exception):  # noqa: N818 - stopping on request is not an error
    """Raised by a recipe that was requested to stop, after it wrote its checkpoint: another attempt resumes from there."""
