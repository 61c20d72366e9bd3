"""The operator's own work as a separate process: `python -m fedpipe_operator.worker TASK.json` plans or aggregates one round.

What takes seconds of processor time would hold up the reconciles of all runs. Results are written to the run's store.
"""

import os
import resource
import sys
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from fedpipe_operator.aggregation import CannotAggregateError
from fedpipe_operator.aggregation.malloc import tune_malloc_for_aggregation
from fedpipe_operator.aggregation.worker import AggregationTask, aggregate
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.reconcile.planning import PlanningTask, plan_round_of
from fedpipe_operator.store.address import credentials_for, open_store
from fedpipe_trainer.contract import ExitCode

_TASK: Final[TypeAdapter[AggregationTask | PlanningTask]] = TypeAdapter(
    Annotated[AggregationTask | PlanningTask, Field(discriminator="kind")]
)


def main(arguments: list[str]) -> None:
    """Perform the task in the file that the only argument names."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m fedpipe_operator.worker TASK.json\n")
        raise SystemExit(int(ExitCode.BAD_TASK))
    tune_malloc_for_aggregation()
    code, message = perform(Path(arguments[0]))
    if code:
        sys.stderr.write(f"{message}\n")
        raise SystemExit(int(code))


def perform(file: Path) -> tuple[ExitCode, str]:
    """Perform the task in this file; the exit status of that and, if it failed, why."""
    try:
        task = _TASK.validate_json(file.read_text(encoding="utf-8"))
        store = open_store(task.store, credentials_for(task.store, os.environ))
        match task:
            case AggregationTask():
                aggregate(task, store)
            case PlanningTask():
                plan_round_of(task, store)
    except TransientError as error:
        return ExitCode.TRANSFER_FAILED, str(error)
    except MemoryError:
        return ExitCode.OUT_OF_MEMORY, str(_too_much_memory())
    except (FedPipeError, CannotAggregateError, ValidationError) as error:
        return ExitCode.BAD_TASK, str(error)
    return ExitCode.OK, ""


def _too_much_memory() -> UserError:
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    most = f"more than the {limit >> 20} MiB" if limit != resource.RLIM_INFINITY else "more memory than there is"
    advice = "give the operator more (resources.limits.memory), or have a Job aggregate (aggregationJobThreshold)"
    return UserError("OutOfMemory", f"this took {most} that a process of the operator may take: {advice}")


if __name__ == "__main__":
    main(sys.argv[1:])
