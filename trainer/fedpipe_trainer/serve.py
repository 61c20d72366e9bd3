"""Serves one task after another in one process: `python -m fedpipe_trainer --serve`.

To start a trainer costs seconds of imports and of loading the base, each time the same. On one machine a site's
trainer may therefore live longer than a task. What it is told and what it tells stay the same:

* standard input: the path of a task file per line; its end ends the process, with status 0
* standard output: the `Progress` lines of the task at work, then its `Ended` line (the path as given, the exit status)
* the log of a task: the file `log` beside the task file, appended to; between tasks it is standard error
* SIGTERM or SIGINT: the task at work leaves its checkpoint and ends, then the process ends with status 143

Every task has its own scratch folder, and nothing is kept from one to the next but the loaded base.
"""

import gc
import logging
from pathlib import Path
from typing import Final, TextIO

from fedpipe_trainer.contract import Ended, ExitCode
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.stopping import Stop
from fedpipe_trainer.streams import Say, logging_into
from fedpipe_trainer.tasks import perform

_LOG_NAME: Final = "log"

_LOG = logging.getLogger(__name__)


def serve(requests: TextIO, *, settings: Settings, say: Say, stop: Stop) -> ExitCode:
    """Do the tasks that `requests` names, until it ends or the process is asked to stop."""
    while not stop.requested:
        with stop.idle():
            request = requests.readline()
        if not request:
            return ExitCode.OK
        path = request.rstrip("\n")
        say(Ended(ended=path, exit_code=_serve_one(Path(path), settings=settings, say=say, stop=stop)))
        # Models are full of reference cycles; the next task should find their memory free.
        gc.collect()
    return ExitCode.TERMINATED


def _serve_one(task_file: Path, *, settings: Settings, say: Say, stop: Stop) -> ExitCode:
    try:
        log = (task_file.parent / _LOG_NAME).open("ab")
    except OSError as error:
        _LOG.error("the log beside %s cannot be written: %s", task_file, error)
        return ExitCode.BAD_TASK
    with log, logging_into(log.fileno()):
        return perform(task_file, settings=settings, say=say, stop_requested=lambda: stop.requested)
