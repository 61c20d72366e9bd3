"""What the operator tells its metrics while it works. The layers below know this class only: `metrics` listens, or nothing does.

Each method may be called from any thread, and takes a part of a millisecond.
"""

import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import Final

from fedpipe_operator.errors import FedPipeError
from fedpipe_operator.rounds import Decision, Observed, Run

OK: Final = "OK"
UNEXPECTED: Final = "Unexpected"


class Observer:
    """Listens to nothing. `metrics` overrides all of it."""

    def kube_called(self, verb: str, reason: str, seconds: float) -> None:
        """A call to the API server ended: with OK, or for an error's reason."""

    def store_called(self, operation: str, reason: str, seconds: float) -> None:
        """A call to a store ended likewise."""

    def reconciled(self, kind: str, result: str, seconds: float) -> None:
        """The reconcile of a key ended: success, transient_error or error."""

    def event_received(self, resource: str) -> None:
        """A watch delivered an object."""

    def run_reconciled(self, run: Run, observed: Observed, decision: Decision, jobs: Container[str]) -> None:
        """A run was reconciled and its status written. Of its jobs, `jobs` has the names of those that are Jobs of Kubernetes."""

    def run_ended(self, run: Run) -> None:
        """A reconcile found that the run is over."""

    def run_deleted(self, uid: str) -> None:
        """The run's object is gone."""

    def site_deleted(self, namespace: str, site: str) -> None:
        """The site's object is gone."""


@contextmanager
def timed(tell: Callable[[str, float], None]) -> Iterator[None]:
    """Tell how a call ended (OK, or the reason of its error), and how many seconds it took."""
    started, how = time.monotonic(), UNEXPECTED
    try:
        yield
        how = OK
    except FedPipeError as error:
        how = error.reason
        raise
    finally:
        tell(how, time.monotonic() - started)
