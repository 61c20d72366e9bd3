"""Performs several tasks one after another in one process: `python -m fedpipe_trainer --serve`.

Starting a trainer takes seconds for imports and for loading the base. On one machine, a site's trainer may therefore
perform more than one task. Task files and results are the same as in a process that performs a single task:

* standard input: the path of a task file per line; at the end of the input the process ends with status 0
* standard output: the `Progress` lines of the current task, then its `TaskEnded` line (the path as given, the exit status)
* the log of a task: appended to the file `log` beside the task file; between tasks the log is standard error
* SIGTERM or SIGINT: the current task writes its checkpoint and ends, then the process ends with status 143

Every task has its own scratch folder, and only the loaded base is kept from one task to the next.
"""

import gc
import logging
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

from fedpipe_trainer.contract import ExitCode, TaskEnded
from fedpipe_trainer.process import StopRequest, WriteLine, redirect_output
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.tasks import import_recipe, perform

_LOG_NAME: Final = "log"

_LOG = logging.getLogger(__name__)


def serve(requests: TextIO, *, settings: Settings, write_line: WriteLine, stop: StopRequest) -> ExitCode:
    """Perform the tasks whose files `requests` names, until its end or until the process is requested to stop.

    The libraries are imported before the first task: a profile measures what every task takes, and here only the first would import.
    """
    with suppress(ImportError, OSError, RuntimeError):  # libraries that cannot be loaded: the first task reports it in its result
        import_recipe("profile")
    while not stop.requested:
        with stop.idle():
            request = requests.readline()
        if not request:
            return ExitCode.OK
        path = request.rstrip("\n")
        exit_code = _perform_with_log(Path(path), settings=settings, write_line=write_line, stop=stop)
        write_line(TaskEnded(ended=path, exit_code=exit_code))
        # Models contain many reference cycles; their memory should be free before the next task.
        gc.collect()
    return ExitCode.TERMINATED


def _perform_with_log(task_file: Path, *, settings: Settings, write_line: WriteLine, stop: StopRequest) -> ExitCode:
    try:
        log = (task_file.parent / _LOG_NAME).open("ab")
    except OSError as error:
        _LOG.error("cannot open the log beside %s: %s", task_file, error)
        return ExitCode.BAD_TASK
    with log, redirect_output(log.fileno()):
        return perform(task_file, settings=settings, write_progress=write_line, stop_requested=lambda: stop.requested)
