"""Speed of a training step that is divided among processes, compared with one process that computes it alone.

    python benchmarks/data_parallel.py MODEL_FOLDER --task classify|generate --processes 2

On a machine with so many GPUs each process has its own, and they exchange gradients by NCCL. On one without any they share the CPU's
threads and use gloo: that shows what the exchange and the division cost, since there is no more to compute with. Steps alternate, so that
a slowdown of the machine affects both. The aim is a share of the ideal speed of 0.9: measured / (processes x alone).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from train_step import BITS, device_name, examples_of, objective_of

from fedpipe_trainer import device
from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import Bits, Hyperparameters
from fedpipe_trainer.model import facts, load
from fedpipe_trainer.parallel import LoadBase, Session, SessionRequest, WorkerGroup, open_session, worker_group
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode
from fedpipe_trainer.task_runtime import TaskRuntime

RANK: Final = 8
PAIRS: Final = 7

Step = Callable[[Session | None], None]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=("classify", "generate"), required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--bits", type=int, nargs="+", choices=BITS, default=(16,))
    parser.add_argument("--batch", type=int, default=8, help="samples of a step, a multiple of the processes")
    parser.add_argument("--length", type=int, default=128)
    arguments = parser.parse_args()
    processes, batch, length, threads = arguments.processes, arguments.batch, arguments.length, torch.get_num_threads()
    print(f"{device_name()}, {processes} processes; batch {batch} × {length}, rank {RANK}; medians of {PAIRS} alternating steps.\n")
    print("| bits | alone, tokens/s | divided, tokens/s | share of the ideal |\n|---:|---:|---:|---:|")
    with TemporaryDirectory() as folder:
        runtime = TaskRuntime(Path(folder), Path(folder), lambda _progress: None, lambda: False)
        with worker_group(device.usable_processes(processes), runtime) as group:
            if group is None or group.processes < processes:
                raise SystemExit(f"this machine has fewer than {processes} GPUs: set CUDA_VISIBLE_DEVICES to an empty text, for its CPU")
            for bits in arguments.bits:
                alone, divided = measure(arguments, bits, group, threads)
                speeds = [batch * length / one for one in (alone, divided)]
                print(f"| {bits} | {speeds[0]:.0f} | {speeds[1]:.0f} | {alone / divided / processes:.3f} |", flush=True)


def measure(arguments: argparse.Namespace, bits: Bits, group: WorkerGroup, threads: int) -> tuple[float, float]:
    """Median seconds of a step that this process computes alone, with all its threads, and of one that all processes divide."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with prepared(arguments, bits, group) as (step, session):
        for pair in range(PAIRS + 1):
            for one, count, column in zip((None, session), (threads, max(1, threads // group.processes)), seconds, strict=True):
                torch.set_num_threads(count)
                start = time.perf_counter()
                step(one)
                device.synchronise(device.choose())
                if pair:
                    column.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


@contextmanager
def prepared(arguments: argparse.Namespace, bits: Bits, group: WorkerGroup) -> Iterator[tuple[Step, Session | None]]:
    """A step of the train recipe, in micro-batches of what each process has to compute, and the session that divides it."""
    folder, objective = arguments.model.resolve(), objective_of(arguments.task, arguments.length)
    examples, size = examples_of(objective, arguments.batch), arguments.batch // group.processes
    with group.loading(LoadBase(folder, "unused", bits, objective, None)):
        base = load(folder, bits, objective)
    ranks = {weight.name: RANK for weight in facts(folder, objective, ()).weights}
    scales = dict.fromkeys(ranks, 1.0)
    with (
        attach_adapters(base, AdapterSpec(ranks, scales.__getitem__), AdapterTensors(), seed=0) as adapters,
        training_mode(adapters.model, checkpointing=False),
        open_session(group, SessionRequest(ranks, scales, seed=0), adapters.trainable) as session,
    ):
        optimizer = make_optimizer(Hyperparameters(), adapters)

        def step(by: Session | None) -> None:
            compute_gradients(examples, objective, base, adapters=adapters, micro_batch=size, session=by)
            optimizer_step(optimizer, learning_rate=2e-4, max_grad_norm=1.0)

        yield step, session


if __name__ == "__main__":
    main()
