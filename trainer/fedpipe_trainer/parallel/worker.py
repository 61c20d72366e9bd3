"""A worker: computes gradients for the first process of its pod. `parallel_worker` is its entry point.

It writes nothing but its log and the site's cache: it has no task, no URL, and no data but the samples that it is given.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from multiprocessing.connection import Connection
from typing import Final

import torch
import torch.distributed as dist

from fedpipe_trainer import device, logs
from fedpipe_trainer.activation_cache import CacheCounts, cached_activations
from fedpipe_trainer.adapters import Adapters, AdapterSpec, AdapterTensors, attach_adapters, read_global_adapter
from fedpipe_trainer.contract import Failure, FailureReason, Objective
from fedpipe_trainer.failures import failure_of
from fedpipe_trainer.model import Base, load
from fedpipe_trainer.parallel import exchange
from fedpipe_trainer.parallel.group import compute_share
from fedpipe_trainer.parallel.messages import (
    AddGradients,
    Answer,
    Closed,
    CloseSession,
    ComputePieces,
    Failed,
    Join,
    LoadBase,
    Message,
    Ready,
    SessionRequest,
)
from fedpipe_trainer.reference_cache import cached_reference
from fedpipe_trainer.steps import accumulate_gradients, training_mode

_NOT_LOADED: Final = Failure(reason=FailureReason.UNEXPECTED, message="no base was loaded")


class Worker:
    """Obeys the messages of a pipe. `rank` is its number, from 1, of so many processes."""

    def __init__(self, pipe: "Connection[Answer, Message]", rank: int, processes: int) -> None:
        self._pipe, self._rank, self._processes = pipe, rank, processes
        if torch.cuda.is_available():
            torch.cuda.set_device(rank)
        self._asked: LoadBase | None = None
        self._loaded: tuple[Base, Objective] | Failure = _NOT_LOADED

    def serve(self) -> None:
        """Obey the messages until the pipe is closed.

        Raises:
            EOFError: it is.
        """
        while True:
            match self._pipe.recv():
                case LoadBase() as asked:
                    self._load(asked)
                    self._pipe.send(Failed(self._loaded) if isinstance(self._loaded, Failure) else Ready())
                case Join() as asked:
                    logs.set_fields(asked.log_fields)
                    exchange.join(asked.store, self._rank, self._processes)
                    self._pipe.send(Ready())
                case SessionRequest() as request:
                    self._pipe.send(self._hold_session(request))
                case CloseSession():
                    self._pipe.send(Closed(CacheCounts()))

    def _load(self, asked: LoadBase) -> None:
        if asked == self._asked:
            return
        self._asked, self._loaded = asked, _NOT_LOADED
        device.trim_memory()
        try:
            whole, known = asked.modules_to_save, asked.fingerprint
            base = load(asked.folder, asked.bits, asked.objective, asked.attention, whole, known_fingerprint=known)
            self._loaded = base, asked.objective
        except Exception as error:  # noqa: BLE001 - every failure is reported
            self._asked, self._loaded = None, failure_of(error, elapsed_seconds=0)

    def _hold_session(self, request: SessionRequest) -> Closed | Failed:
        """Compute gradients until the session is closed, or something fails; the last answer."""
        if isinstance(self._loaded, Failure):
            return Failed(self._loaded)
        base, objective = self._loaded
        spec = AdapterSpec(request.ranks, request.scales.__getitem__, request.dropout)
        try:
            start = read_global_adapter(request.start, base.model, base.head, base.whole) if request.start else AdapterTensors()
            with (
                attach_adapters(base, spec, start, request.seed) as adapters,
                device.deterministic(base.device) if request.is_deterministic else nullcontext(),
                device.memory_limit(base.device, request.memory_limit_bytes),
                cached_activations(base, request, start, request) as cache,
                cached_reference(base, objective, request) if request.keeps_reference else nullcontext(),
                training_mode(adapters.model, checkpointing=request.gradient_checkpointing, lowest_layer=request.lowest_layer),
            ):
                self._pipe.send(Ready())
                self._compute_steps(base, objective, adapters)
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001 - every failure is reported
            return Failed(failure_of(error, elapsed_seconds=0))
        return Closed(cache)

    def _compute_steps(self, base: Base, objective: Objective, adapters: Adapters) -> None:
        """Compute what is asked for until the session is closed."""
        while True:
            match self._pipe.recv():
                case ComputePieces(pieces, targets):
                    _wait(exchange.send_parameters(adapters.trainable))
                    exchange.clear_gradients(adapters.trainable)
                    compute = partial(accumulate_gradients, objective=objective, base=base, model=adapters.model, targets=targets)
                    self._pipe.send(compute_share(pieces, adapters.trainable, compute))
                case AddGradients():
                    _wait(exchange.add_gradients(adapters.trainable))
                case CloseSession():
                    return


def _wait(works: Sequence[dist.Work]) -> None:
    for work in works:
        work.wait()
