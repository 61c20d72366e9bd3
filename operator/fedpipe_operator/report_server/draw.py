"""Draws one report, as a process of its own: `python -m fedpipe_operator.report_server.draw FILE < TASK`.

The page is written to the file, packed by gzip, and its content security policy to stdout. The run's key pair is in environment variables.
What it may use is bounded: a run's records, and so its page, grow with its sites and its rounds.
"""

import gzip
import os
import resource
import sys
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.store.address import StoreAddress, credentials_for, open_store
from fedpipe_operator.store.connections import deadline
from fedpipe_trainer.contract import Wire

MEMORY_BYTES: Final = 512 * 2**20
"""Of all that the process allocates; a run of 30 sites and 4 rounds takes 125 MiB, nearly all of it for the libraries."""
PAGE_BYTES: Final = 16 * 2**20
"""Of the packed page."""
_STORE_SECONDS: Final = 40.0
"""For all calls of the store together: a slow store costs its own run's report only."""
_FAILED: Final = 1


class DrawingTask(Wire):
    """Draw the report of this run."""

    store: StoreAddress
    run: FederatedFineTune


def main(arguments: list[str]) -> None:
    """Perform the task on stdin. A failure is one line on stderr, for the person who asked for the page."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        page, policy = _draw(DrawingTask.model_validate_json(sys.stdin.read()))
    except MemoryError:
        _fail(f"the run has too many sites and rounds to be drawn here within {MEMORY_BYTES >> 20} MiB: use fedpipe report")
    except (FedPipeError, ValidationError) as error:
        _fail(str(error))
    packed = gzip.compress(page.encode(), 6)
    if len(packed) > PAGE_BYTES:
        _fail(f"the page has {len(packed) >> 20} MiB, more than the {PAGE_BYTES >> 20} MiB that are served: use fedpipe report")
    Path(arguments[0]).write_bytes(packed)
    sys.stdout.write(policy)


def _draw(task: DrawingTask) -> tuple[str, str]:
    from fedpipe_operator.report import content_security_policy, read_record, write_report  # noqa: PLC0415 -- within the limit of memory

    with deadline(_STORE_SECONDS):
        record = read_record(task.run, open_store(task.store, credentials_for(task.store, os.environ)))
    return write_report(record), content_security_policy()


def _fail(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    raise SystemExit(_FAILED)


if __name__ == "__main__":
    main(sys.argv[1:])
