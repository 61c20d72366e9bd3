"""The two ways a recipe ends early on purpose; anything else that escapes a recipe is a fault of ours (`Unexpected`)."""

from fedpipe_trainer.contract import FailureReason


class TaskFailed(Exception):  # noqa: N818 - the outcome of a task, named as the result names it
    """The task cannot be done, for a reason the operator acts on and in words a person acts on."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Terminated(Exception):  # noqa: N818 - an order that was obeyed, not an error
    """Raised by a recipe that was asked to stop, after it left its checkpoint: another attempt goes on from there."""
