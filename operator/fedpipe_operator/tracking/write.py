"""Writes the trackers of one run, however much of it they have: what a thread of `trackers` does."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.memory_budget import Holding
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Guard, Store
from fedpipe_operator.store.connections import deadline
from fedpipe_operator.store.http_server import HttpServer
from fedpipe_operator.tracking.content import end_of
from fedpipe_operator.tracking.login import Login
from fedpipe_operator.tracking.mlflow import MlflowClient
from fedpipe_operator.tracking.mlflow_run import Place, write_run
from fedpipe_operator.tracking.records import FinishedRounds
from fedpipe_operator.tracking.tensorboard import write_event_files

SECONDS: Final = 120.0
"""For all calls of the store and of a tracker together. What was written until then counts: the next time goes on from there."""


@dataclass(frozen=True)
class Work:
    """One run, and what it takes to write its trackers."""

    run: Run
    store: Store
    location: str
    """Of the run's folder, as S3 tools write it, or a path."""
    guard: Guard | None = None
    """Which addresses a tracker may have; None: any, as on one machine."""
    login: Login = field(default_factory=Login)
    holding: Holding = field(default_factory=Holding)
    """What the run's rounds take of the operator's memory while they are written."""


def write_trackers(work: Work) -> str:
    """Write what the run's trackers do not have yet; where it is, in words, empty before there is anything.

    Raises:
        FedPipeError: of the first tracker that could not be written; the others are.
    """
    rounds = FinishedRounds(work.run, work.store, work.holding)
    tracking = work.run.spec.tracking
    chosen: list[Callable[[], str]] = []
    if tracking.tensorboard:
        chosen.append(lambda: _event_files(rounds, work))
    if tracking.mlflow is not None:
        chosen.append(lambda: _mlflow(rounds, work))
    try:
        with deadline(SECONDS):
            return "; ".join(filter(None, _all_of(chosen)))
    finally:
        work.holding.keep(())


def _all_of(writers: list[Callable[[], str]]) -> list[str]:
    """What each says. One that fails does not keep the others from being written."""
    said, failures = list[str](), list[FedPipeError]()
    for write in writers:
        try:
            said.append(write())
        except FedPipeError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return said


def _event_files(rounds: FinishedRounds, work: Work) -> str:
    return "" if write_event_files(rounds) is None else f"event files in {work.location}/tensorboard"


def _mlflow(rounds: FinishedRounds, work: Work) -> str:
    spec = work.run.spec.tracking.mlflow
    assert spec is not None  # noqa: S101 -- the caller asked
    place = Place(spec.experiment, work.location, end_of(work.run.resource.status.conditions))
    with HttpServer(spec.tracking_uri.rstrip("/"), work.login.headers, work.guard) as server:
        page = write_run(MlflowClient(server), rounds, place)
    return f"MLflow: {page}" if page else ""
