"""The workers of a task, as the first process sees them: it starts them, tells them what to do, and ends them.

A worker that ends, fails or does not answer ends the task at once, with its reason: whatever the others computed would be of no step.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import torch
import torch.distributed as dist
from torch import nn

from fedpipe_trainer import device, logs
from fedpipe_trainer.activation_cache import CacheCounts
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.parallel import exchange
from fedpipe_trainer.parallel.messages import (
    AddGradients,
    Answer,
    Closed,
    CloseSession,
    Computed,
    ComputePieces,
    Failed,
    Join,
    LoadBase,
    Message,
    Piece,
    SessionRequest,
)
from fedpipe_trainer.task_runtime import TaskRuntime

_WORKER: Final = "fedpipe_trainer.parallel_worker"
_ANSWER_SECONDS: Final = 600.0
"""For an answer, after this process has done its own part."""
_EXCHANGE_SECONDS: Final = 60.0
"""For parameters or gradients, which all processes are ready to exchange."""
_END_SECONDS: Final = 10.0
"""For the status of a process that has closed its pipe."""
_NOTICE_SECONDS: Final = 2.0
"""In which the end of a process becomes known after its connections are closed."""
_POLL_SECONDS: Final = 0.0005
_STDERR: Final = 2


@dataclass(eq=False)
class _Worker:
    rank: int
    process: "subprocess.Popen[bytes]"
    pipe: "Connection[Message, Answer]"


@dataclass
class WorkerGroup:
    """The processes that compute gradients beside this one."""

    folder: Path
    """An empty folder of this group."""
    workers: tuple[_Worker, ...]
    is_broken: bool = False
    """Whether a worker has ended or does not answer. Then nothing is left to do but to end the others."""
    _is_joined: bool = False

    @property
    def processes(self) -> int:
        """How many processes divide a step, this one among them."""
        return 1 + len(self.workers)

    @contextmanager
    def loading(self, base: LoadBase) -> Iterator[None]:
        """Have the workers load a base, while this process does the same in this context. Raises as `asking`."""
        with self.asking([base] * len(self.workers)):
            yield
        if not self._is_joined:
            # All have just answered, so that none is missing, for which this one would wait.
            store = self.folder / "store"
            with self.asking([Join(store, logs.fields())] * len(self.workers)):
                exchange.join(store, 0, self.processes)
            self._is_joined = True

    @contextmanager
    def asking(self, messages: Sequence[Message]) -> Iterator[list[Answer]]:
        """Send each worker its message, do this process's own part in this context, and wait for the answers, which fill the list.

        Raises:
            TaskFailed: a worker has failed, with its reason; or it has ended, or does not answer in time. A failure of this process comes
                before those.
        """
        for worker, message in zip(self.workers, messages, strict=True):
            self._send(worker, message)
        answers: list[Answer] = []
        try:
            yield answers
        except BaseException:
            with suppress(TaskFailed):
                self._read_answers()
            raise
        answers += self._read_answers()
        for worker, answer in zip(self.workers, answers, strict=True):
            if isinstance(answer, Failed):
                raise TaskFailed(answer.failure.reason, f"device {worker.rank}: {answer.failure.message}")

    def tell(self, message: Message) -> None:
        """Send all workers a message that has no answer. Raises as `asking`."""
        for worker in self.workers:
            self._send(worker, message)

    def finish(self, works: Sequence[dist.Work]) -> None:
        """Wait until parameters or gradients have been exchanged.

        Raises:
            TaskFailed: a worker has ended, or the exchange does not end.
        """
        until = time.monotonic() + _EXCHANGE_SECONDS
        try:
            while not all(work.is_completed() for work in works):
                self._check_ended()
                time.sleep(_POLL_SECONDS)
                if time.monotonic() > until:
                    raise self._failure("the devices of this pod do not end their exchange of gradients")
            for work in works:
                work.wait()
        except RuntimeError as error:
            # A connection is closed a little before the end of its process is known.
            until = time.monotonic() + _NOTICE_SECONDS
            while time.monotonic() < until:
                self._check_ended()
                time.sleep(_POLL_SECONDS)
            raise self._failure("the devices of this pod cannot exchange gradients") from error

    def end(self) -> None:
        """End the workers. They have no state, so that nothing is lost however they end."""
        for worker in self.workers:
            worker.process.kill()
            worker.pipe.close()
        exchange.leave()
        for worker in self.workers:
            worker.process.wait()

    def _send(self, worker: _Worker, message: Message) -> None:
        try:
            worker.pipe.send(message)
        except OSError as error:
            raise self._lost(worker) from error

    def _read_answers(self) -> list[Answer]:
        return [] if self.is_broken else [self._read_answer(worker) for worker in self.workers]

    def _read_answer(self, worker: _Worker) -> Answer:
        if not worker.pipe.poll(_ANSWER_SECONDS):
            raise self._failure(f"the process of device {worker.rank} has not answered for {_ANSWER_SECONDS:.0f} s")
        try:
            return worker.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost(worker) from error

    def _check_ended(self) -> None:
        """Raise an exception if a worker has ended."""
        for worker in self.workers:
            if worker.process.poll() is not None:
                raise self._lost(worker)

    def _lost(self, worker: _Worker) -> TaskFailed:
        """The failure of a task one of whose workers has ended."""
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(_END_SECONDS)
        return self._failure(f"the process of device {worker.rank} {_end_of(worker.process.returncode)}")

    def _failure(self, message: str) -> TaskFailed:
        self.is_broken = True
        return TaskFailed(FailureReason.UNEXPECTED, f"{message}: see the log of the pod")


@dataclass
class Session:
    """Gradients by all processes of a group, until it is closed."""

    group: WorkerGroup
    trainable: Mapping[str, nn.Parameter]
    """The trained parameters of this process."""
    cache_counts: tuple[CacheCounts, ...] = ()
    """What the workers found in the site's cache; known when the session is closed."""

    @property
    def processes(self) -> int:
        """How many processes divide a step."""
        return self.group.processes

    def accumulate(self, pieces: Sequence[Piece], targets: int, compute: Callable[[Sequence[Piece]], float]) -> float:
        """The gradients of these micro-batches in the trained parameters of this process; the loss, summed over their targets.

        Args:
            pieces: of the whole step.
            targets: of the whole step.
            compute: the same for this process alone, which adds to the gradients.

        Raises:
            torch.OutOfMemoryError: memory does not suffice in one of the processes; nothing is kept in any of them.
            TaskFailed: a worker has failed or ended.
        """
        own, *shares = (tuple(pieces[rank :: self.processes]) for rank in range(self.processes))
        with self.group.asking([ComputePieces(share, targets) for share in shares]) as answers:
            self.group.finish(exchange.send_parameters(self.trainable))
            mine = compute_share(own, self.trainable, compute)
        computed = [mine, *(answer for answer in answers if isinstance(answer, Computed))]
        if any(one.is_out_of_memory for one in computed):
            exchange.clear_gradients(self.trainable)
            raise torch.OutOfMemoryError("out of memory on one of the devices")
        self.group.tell(AddGradients())
        self.group.finish(exchange.add_gradients(self.trainable))
        # A parameter that no process has reached has no gradient, as with one process: AdamW leaves it as it is.
        exchange.clear_gradients(self.trainable, but=frozenset().union(*(one.reached for one in computed)))
        return sum(one.loss for one in computed)

    def close(self) -> None:
        """End the session in all workers."""
        if self.group.is_broken:
            return
        with self.group.asking([CloseSession()] * len(self.group.workers)) as answers:
            pass
        self.cache_counts = tuple(answer.cache for answer in answers if isinstance(answer, Closed))


def compute_share(pieces: Sequence[Piece], trainable: Mapping[str, nn.Parameter], compute: Callable[[Sequence[Piece]], float]) -> Computed:
    """What the pieces of one process give, in whose parameters the gradients are; without these if its memory does not suffice."""
    try:
        loss = compute(pieces)
        return Computed(loss, exchange.fill_gradients(trainable))
    except (RuntimeError, MemoryError) as error:
        if not device.is_out_of_memory(error):
            raise
    # Outside of the except block, the error and its traceback are gone, and with them the tensors of the failed call.
    exchange.clear_gradients(trainable)
    device.trim_memory()
    return Computed(is_out_of_memory=True)


@contextmanager
def worker_group(processes: int, runtime: TaskRuntime) -> Iterator[WorkerGroup | None]:
    """The workers of a task that is divided among so many processes, in this context; None for one process.

    On a CPU the processes share its threads and the task's memory.
    """
    if processes == 1:
        yield None
        return
    threads, limit = torch.get_num_threads(), runtime.memory_limit_bytes
    torch.set_num_threads(max(1, threads // processes))
    if device.choose().type == "cpu":
        runtime.memory_limit_bytes = device.memory_bytes(device.choose(), limit) // processes
    folder = Path(mkdtemp(prefix="processes-", dir=runtime.folder))
    group = WorkerGroup(folder, tuple(_start(rank, processes) for rank in range(1, processes)))
    try:
        yield group
    finally:
        group.end()
        torch.set_num_threads(threads)
        runtime.memory_limit_bytes = limit


@contextmanager
def open_session(group: WorkerGroup | None, request: SessionRequest, trainable: Mapping[str, nn.Parameter]) -> Iterator[Session | None]:
    """Gradients by all processes of this group, in this context; None without a group.

    Args:
        group: the workers, which have loaded the base that this process has.
        request: how they compute gradients: as this process does.
        trainable: the trained parameters of this process.

    Raises:
        TaskFailed: as `WorkerGroup.asking`.
    """
    if group is None:
        yield None
        return
    session = Session(group, trainable)
    try:
        with group.asking([request] * len(group.workers)):
            pass
        yield session
    except BaseException:
        with suppress(TaskFailed):  # why the session ends matters, and not that a worker has ended, too
            session.close()
        raise
    session.close()


def processes_of(divided: WorkerGroup | Session | None) -> int:
    """How many processes divide a step; None: this one does it alone."""
    return divided.processes if divided else 1


def _start(rank: int, processes: int) -> _Worker:
    here, there = socket.socketpair()
    with here, there:
        command = [sys.executable, "-m", _WORKER, str(there.fileno()), str(rank), str(processes), str(os.getpid())]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        # Standard output is that of the first process alone.
        process = subprocess.Popen(  # noqa: S603 -- this program
            command, stdin=subprocess.DEVNULL, stdout=_STDERR, env=environment, pass_fds=(there.fileno(),)
        )
        return _Worker(rank, process, Connection(here.detach()))


def _end_of(returncode: int | None) -> str:
    """How a process ended."""
    if returncode is None or returncode >= 0:
        return f"ended with status {returncode}"
    name = signal.Signals(-returncode).name
    if returncode == -signal.SIGKILL:
        return f"was killed ({name}), as the kernel does when a pod's memory is used up (if so, raise capacity.memory of the EdgeSite)"
    return f"was ended by {name}"
