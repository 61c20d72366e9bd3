"""The trainer's command line: `python -m fedpipe_trainer TASK.json` does one task and ends; `--serve` does many.

One task: progress on standard output, the log on standard error, the exit status as `contract.ExitCode` lists them.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedpipe_trainer import settings as environment
from fedpipe_trainer.contract import ExitCode
from fedpipe_trainer.serve import serve
from fedpipe_trainer.stopping import Stop
from fedpipe_trainer.streams import claim_stdout, speaker
from fedpipe_trainer.tasks import perform

# Libraries read these when they are imported; a user's own choice stands.
_DEFAULTS: Final = {
    # OpenMP's threads wait for one another by spinning; where a core is shared, or a pod has less than it has threads,
    # a step then takes some thirty times as long (measured: 2 threads, one other busy process, 2 cores).
    "OMP_WAIT_POLICY": "PASSIVE",
    # Nothing is compiled here. bitsandbytes wraps its plainest kernels for torch's compiler whether or not they are used, and to load
    # that takes a second of processor time.
    "TORCHDYNAMO_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


def main(arguments: Sequence[str] | None = None) -> ExitCode:
    """Parse the command line, do what it says; the exit status."""
    parser = argparse.ArgumentParser(prog="fedpipe_trainer", description="Does FedPipe tasks: profile, train, evaluate, export.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("task", nargs="?", type=Path, help="a task file (JSON)")
    what.add_argument("--serve", action="store_true", help="do the task files named on standard input, one a line")
    chosen = parser.parse_args(arguments)
    _prepare_libraries()
    try:
        settings = environment.read(os.environ)
    except ValueError as error:
        parser.error(str(error))
    stop = Stop()
    stop.listen()
    say = speaker(claim_stdout(), on_broken_pipe=stop.request)
    if chosen.serve:
        return serve(sys.stdin, settings=settings, say=say, stop=stop)
    return perform(chosen.task, settings=settings, say=say, stop_requested=lambda: stop.requested)


def _prepare_libraries() -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(capture=True)
    # At int8 on bf16 it logs a line per layer call.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
