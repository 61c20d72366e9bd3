"""Parameters from the first process to the others, gradients from these to the first: the two collective operations of a step.

Tensors are sent as they are, one after the other: joined, they would need as much memory again, when a device has least.
"""

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch import nn

_FIRST: Final = 0
_SECONDS: Final = 120
"""Within which torch.distributed gives up. The first process notices the end of another at once (`group`)."""
_ENVIRONMENT: Final = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""The processes are in one pod: nothing needs to listen on its network. GPUs exchange through their own links or shared memory."""


def join(store: Path, rank: int, processes: int) -> None:
    """Join the other processes; it returns when all have joined.

    They meet at a file, not at a port, since torch's store of keys listens on all interfaces and asks nobody who they are.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    meeting = dist.FileStore(str(store), processes)  # type: ignore[attr-defined]  # documented, but not listed
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=processes, timeout=timedelta(seconds=_SECONDS))


def leave() -> None:
    """Leave the other processes, which may have ended."""
    if dist.group.WORLD is not None:
        dist.group.WORLD.abort()  # else an exchange that is queued on a GPU would wait for them, and whatever uses the GPU for that
        dist.destroy_process_group()


def send_parameters(trainable: Mapping[str, nn.Parameter]) -> list[dist.Work]:
    """Begin to send the values of the first process to the others, in place."""
    return _works(dist.broadcast(parameter.detach(), src=_FIRST, async_op=True) for parameter in trainable.values())


def add_gradients(trainable: Mapping[str, nn.Parameter]) -> list[dist.Work]:
    """Begin to add the gradients of all processes in the first, in place. Every parameter has one (`fill_gradients`)."""
    gradients = [parameter.grad for parameter in trainable.values() if parameter.grad is not None]
    return _works(dist.reduce(gradient, dst=_FIRST, async_op=True) for gradient in gradients)


def fill_gradients(trainable: Mapping[str, nn.Parameter]) -> frozenset[str]:
    """Give zeros to every parameter without a gradient; the keys of those that had one."""
    reached = frozenset(key for key, parameter in trainable.items() if parameter.grad is not None)
    for key in trainable.keys() - reached:
        trainable[key].grad = torch.zeros_like(trainable[key])
    return reached


def clear_gradients(trainable: Mapping[str, nn.Parameter], but: frozenset[str] = frozenset()) -> None:
    """Take the gradients from all parameters, but from these."""
    for key in trainable.keys() - but:
        trainable[key].grad = None


def _works(begun: Iterable[dist.Work | None]) -> list[dist.Work]:
    return [work for work in begun if work is not None]
