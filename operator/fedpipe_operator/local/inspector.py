"""Asks a trainer's process about files of this machine: the operator has no reader of data, and no library that knows models."""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Final, TypeVar

from pydantic import ValidationError

from fedpipe_operator.errors import UserError
from fedpipe_trainer.contract import Wire
from fedpipe_trainer.contract.inspection import CheckQuestion, HoldOutQuestion, InspectQuestion

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
    # As for a run's trainers: none of them gets the credentials of the store.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(_COMMAND, input=question.to_json(), capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - our own program
    try:
        return answer.model_validate_json(done.stdout)
    except ValidationError:
        last = " | ".join(done.stderr.splitlines()[-_LAST_LINES:]) or "it wrote nothing"
        raise UserError("TrainerFailed", f"the trainer's process ended with status {done.returncode} and no answer: {last}") from None
