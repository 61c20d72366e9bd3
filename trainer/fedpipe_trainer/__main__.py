"""The trainer's command line: `python -m fedpipe_trainer TASK.json` performs one task; `--serve` performs several.

`--inspect` is for `fedpipe init` and `fedpipe validate --data`: it answers questions about files of this machine.

For one task, progress goes to standard output and the log to standard error; with `FEDPIPE_LOG_FORMAT=json` progress is in the log. The
exit status is a `contract.ExitCode`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fedpipe_trainer import logs
from fedpipe_trainer import settings as environment
from fedpipe_trainer.contract import ExitCode
from fedpipe_trainer.process import StopRequest, json_line_writer, reserve_stdout
from fedpipe_trainer.serve import serve
from fedpipe_trainer.tasks import perform

# Environment variables that libraries read when they are imported; values that the user has set are kept.
_LIBRARY_DEFAULTS: Final = {
    # OpenMP's threads wait for one another by spinning. If a core is shared, or a pod has fewer cores than threads, a
    # step then takes about thirty times as long (measured with 2 threads and one other busy process on 2 cores).
    "OMP_WAIT_POLICY": "PASSIVE",
    # Nothing is compiled here. bitsandbytes wraps its default kernels for torch's compiler even if they are not used, and loading the
    # compiler takes a second of processor time.
    "TORCHDYNAMO_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}

_LOG = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="fedpipe_trainer", description="Performs FedPipe tasks: profile, train, evaluate, export.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("task", nargs="?", type=Path, help="path of a task file (JSON)")
    mode.add_argument("--serve", action="store_true", help="perform the task files whose paths are read from standard input, one per line")
    mode.add_argument("--inspect", action="store_true", help="answer questions about files of this machine: a line of JSON for each")
    options = parser.parse_args(arguments)
    for name, value in _LIBRARY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        settings = environment.read(os.environ)
    except ValueError as error:
        parser.error(str(error))
    logs.configure(settings.log_format)
    if options.inspect:
        return _inspect(settings)
    stop = StopRequest()
    stop.handle_signals()
    write_line = json_line_writer(reserve_stdout(), on_broken_pipe=stop.request)
    if options.serve:
        return serve(sys.stdin, settings=settings, write_line=write_line, stop=stop)
    report = logs.ProgressLog().write if settings.log_format == "json" else write_line
    return perform(options.task, settings=settings, write_progress=report, stop_requested=lambda: stop.requested)


def _inspect(settings: environment.Settings) -> ExitCode:
    from fedpipe_trainer.contract.inspection import one_line  # noqa: PLC0415 - of what is not asked a question nothing is imported
    from fedpipe_trainer.inspection import answer  # noqa: PLC0415 - it imports torch, which takes seconds

    with reserve_stdout() as out:
        for question in sys.stdin:
            try:
                print(one_line(answer(question, settings)), file=out, flush=True)
            except ValidationError:
                _LOG.exception("what came on standard input is no question")
                return ExitCode.BAD_TASK
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
