"""Speed of the trainer's step, compared with a plain transformers + peft loop.

    python benchmarks/train_step.py MODEL_FOLDER --task classify|generate

Both loops train LoRA of the same rank on the same model, batch and length in one process with alternating steps, so that a slowdown of the
machine affects both. Runs on a GPU, if there is one. What a whole task needs, and what the planner forecasts of it, measures `forecasts/`.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from fedpipe_trainer import device
from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import Bits, CausalLM, Hyperparameters, SequenceClassification
from fedpipe_trainer.data import Example, collate
from fedpipe_trainer.model import facts, load
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode

BITS: Final[tuple[Bits, ...]] = (4, 8, 16, 32)
DTYPES: Final = {4: torch.bfloat16, 8: torch.bfloat16, 16: torch.bfloat16, 32: torch.float32}
RANK: Final = 8
ALPHA: Final = 16.0
PAIRS: Final = 7
LABELS: Final = tuple(f"class-{i}" for i in range(20))

Objective = SequenceClassification | CausalLM
Step = Callable[[list[Example]], None]


@dataclass(frozen=True)
class Options:
    """The model, the task and what to measure."""

    folder: Path
    task: str
    bits: Sequence[Bits]
    batch: int
    length: int


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=("classify", "generate"), required=True)
    parser.add_argument("--bits", type=int, nargs="+", choices=BITS, default=BITS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    arguments = parser.parse_args()
    print_speed(Options(arguments.model.resolve(), arguments.task, arguments.bits, arguments.batch, arguments.length))


def objective_of(task: str, length: int) -> Objective:
    """The objective, with samples truncated at `length` tokens."""
    if task == "classify":
        return SequenceClassification(labels=LABELS, max_length=length)
    return CausalLM(prompt="{text}", response="{answer}", max_length=length)


def print_speed(options: Options) -> None:
    """Tokens per second of both loops, and their ratio, at every bit width."""
    batch, length = options.batch, options.length
    objective = objective_of(options.task, length)
    print(f"{device_name()}; batch {batch} × {length}, rank {RANK}; medians of {PAIRS} alternating steps.\n")
    print("| bits | plain loop, tokens/s | ours, tokens/s | ratio |\n|---:|---:|---:|---:|")
    for bits in options.bits:
        with our_step(options.folder, bits, objective) as ours:
            plain = plain_step(options.folder, bits, objective)
            seconds = alternate(plain, ours, examples_of(objective, batch))
        speeds = [batch * length / statistics.median(column) for column in seconds]
        ratio = statistics.median(p / o for p, o in zip(*seconds, strict=True))
        print(f"| {bits} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.3f} |", flush=True)
        del ours, plain
        device.trim_memory()


def device_name() -> str:
    """The device, for the heading of a table."""
    chosen = device.choose()
    return f"CPU, {torch.get_num_threads()} threads" if chosen.type == "cpu" else torch.cuda.get_device_name(chosen)


def alternate(plain: Step, ours: Step, examples: list[Example]) -> tuple[list[float], list[float]]:
    """Seconds of each loop's steps, alternating, after one warm-up step of each."""
    columns: tuple[list[float], list[float]] = ([], [])
    for pair in range(PAIRS + 1):
        for step, column in zip((plain, ours), columns, strict=True):
            start = time.perf_counter()
            step(examples)
            device.synchronise(device.choose())
            if pair:
                column.append(time.perf_counter() - start)
    return columns


@contextmanager
def our_step(folder: Path, bits: Bits, objective: Objective) -> Iterator[Step]:
    """A step of the train recipe."""
    base = load(folder, bits, objective)
    spec = AdapterSpec({weight.name: RANK for weight in facts(folder, objective, ()).weights}, scale=lambda _weight: ALPHA / RANK)
    with attach_adapters(base, spec, AdapterTensors(), seed=0) as adapters, training_mode(adapters.model, checkpointing=False):
        optimizer = make_optimizer(Hyperparameters(), adapters)

        def step(examples: list[Example]) -> None:
            compute_gradients(examples, objective, base, adapters=adapters, micro_batch=len(examples))
            optimizer_step(optimizer, learning_rate=2e-4, max_grad_norm=1.0)

        yield step


def plain_step(folder: Path, bits: Bits, objective: Objective) -> Step:
    """A step as in the libraries' examples."""
    classifies = isinstance(objective, SequenceClassification)
    auto: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    skipped = ["classifier", "score"] if classifies else None
    quantisation = {
        4: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=skipped,
        ),
        8: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped),
    }.get(bits)
    labels = {"num_labels": len(LABELS)} if classifies else {}
    model = auto.from_pretrained(folder, dtype=DTYPES[bits], quantization_config=quantisation, device_map={"": device.choose()}, **labels)
    targets = sorted(weight.name for weight in facts(folder, objective, ()).weights)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)

    def step(examples: list[Example]) -> None:
        batch = {name: tensor.to(model.device) for name, tensor in collate(examples, objective, pad_id=0).items()}
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def examples_of(objective: Objective, batch: int) -> list[Example]:
    """A batch without padding; for a language model, the targets are the second half."""
    length = objective.max_length
    ids = [[100 + (7 * i + 3 * j) % 900 for j in range(length)] for i in range(batch)]
    if isinstance(objective, SequenceClassification):
        return [Example(row, [i % len(LABELS)]) for i, row in enumerate(ids)]
    half = length // 2
    return [Example(row, [-100] * half + row[half:]) for row in ids]


if __name__ == "__main__":
    main()
