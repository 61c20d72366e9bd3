"""Asks a trainer's process about files of this machine: the operator has no reader of data, and no library that knows models.

One process answers all questions of a command, since what it imports takes seconds.
"""

import atexit
import os
import sys
from functools import cache
from importlib.util import find_spec
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from typing import Final, TypeVar

from pydantic import ValidationError

from fedpipe_operator.errors import UserError
from fedpipe_trainer.contract import Wire
from fedpipe_trainer.contract.inspection import CheckQuestion, HoldOutQuestion, InspectQuestion, one_line

_COMMAND: Final = (sys.executable, "-m", "fedpipe_trainer", "--inspect")
_NEEDED: Final = ("torch", "transformers", "pyarrow")
_LAST_LINES: Final = 5
"""Of the log, in a message."""
AnswerT = TypeVar("AnswerT", bound=Wire)


def ask(question: InspectQuestion | HoldOutQuestion | CheckQuestion, answer: type[AnswerT]) -> AnswerT:
    """The answer of a trainer's process to a question about files.

    Raises:
        UserError: `TrainerMissing`, the trainer's packages are not installed; `TrainerFailed`, its process ended without an answer.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        found = f"the trainer's packages are not installed here ({', '.join(missing)} is missing), and they read data and models"
        raise UserError("TrainerMissing", f"{found}: pip install 'fedpipe[operator,trainer]', or `make venv` in a clone of the repository")
    try:
        return answer.model_validate_json(_trainer().ask(one_line(question.to_json())))
    except ValidationError:
        status, log = _trainer().end()
        _trainer.cache_clear()
        last = " | ".join(log[-_LAST_LINES:]) or "it wrote nothing"
        raise UserError("TrainerFailed", f"the trainer's process ended with status {status} and no answer: {last}") from None


class _Trainer:
    """A trainer's process, until it ends, which is at the end of this process at the latest."""

    def __init__(self) -> None:
        # As for a run's trainers: none of them gets the credentials of the store.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self._log = TemporaryFile("w+", errors="replace")  # noqa: SIM115 - a pipe that nobody reads would fill
        self._process = Popen(_COMMAND, stdin=PIPE, stdout=PIPE, stderr=self._log, text=True, env=environment)  # noqa: S603 - our own program
        atexit.register(self.end)

    def ask(self, question: str) -> str:
        """The answer to a question, both as a line of JSON; empty if the process has ended."""
        assert self._process.stdin is not None  # noqa: S101 -- it is a pipe
        assert self._process.stdout is not None  # noqa: S101 -- likewise
        try:
            print(question, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()

    def end(self) -> tuple[int, list[str]]:
        """Let it end; its exit status, and the lines of its log."""
        atexit.unregister(self.end)
        self._process.communicate()
        with self._log as log:
            log.seek(0)
            return self._process.returncode, log.read().splitlines()


@cache
def _trainer() -> _Trainer:
    return _Trainer()
