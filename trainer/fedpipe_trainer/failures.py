"""What a result reports when something failed: the reason, and a message without any of the site's data."""

import logging
import sys
import traceback
from typing import Final

from fedpipe_trainer.contract import Failure, FailureReason
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.library_failures import circumstances, known_failure, location
from fedpipe_trainer.printable import printable

_REPORT: Final = (
    "no known failure, so another attempt may end otherwise; if it does not, report this line to FedPipe's developers with the traceback "
    "in the log of the task and the versions under `software` in its result, none of which has any data"
)

_LOG = logging.getLogger(__name__)


def failure_of(error: Exception, *, elapsed_seconds: float) -> Failure:
    """The failure that a result reports for this exception.

    Args:
        error: what a recipe raised. Only the messages of `TaskFailed` and `Terminated` leave the site: others may quote its data.
        elapsed_seconds: how long the task has run, for the message about a request to stop.
    """
    match error:
        case TaskFailed():
            reason, message = error.reason, error.message
        case Terminated():
            reason = FailureReason.TERMINATED
            message = f"stopped on request after {elapsed_seconds:.0f} s" + (f", {error}" if str(error) else "")
        case _ if _is_out_of_memory(error):
            reason = FailureReason.OUT_OF_MEMORY
            message = f"out of memory in {location(error)}: use fewer bits, a smaller batch size or a smaller maxLength"
        case _ if (known := known_failure(error)) is not None:
            _LOG.error("exception of a library %s", stack_of(error))
            reason, message = known
        case _:
            # The message of an exception may quote the site's data, and others than the data's owner read logs: neither has it.
            _LOG.error("unexpected exception %s", stack_of(error))
            reason = FailureReason.UNEXPECTED
            message = f"{type(error).__name__} in {location(error)}, {circumstances(error)}: {_REPORT}"
    return Failure(reason=reason, message=printable(message))


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from fedpipe_trainer import device  # noqa: PLC0415 - it imports torch, which has been imported by now

    return device.is_out_of_memory(error)


def stack_of(error: BaseException) -> str:
    """Types and stack of an exception and of those that it was raised from, as lines, without their messages."""
    causes, last = [error], error
    while (cause := last.__cause__ or last.__context__) is not None and cause not in causes:
        causes.append(cause)
        last = cause
    return "from ".join(f"{type(one).__name__}\n{''.join(traceback.format_tb(one.__traceback__))}" for one in causes)
