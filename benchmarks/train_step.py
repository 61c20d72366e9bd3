"""Speed and memory of the trainer's step: against a plain transformers + peft loop, and against the planner's forecasts.

    python benchmarks/train_step.py MODEL_FOLDER --task classify|generate [--speed] [--memory] [--time]

Speed: both loops train LoRA of the same rank on the same model, batch and length in one process, a step of one after
a step of the other, so that a machine that slows down slows both. Memory and time: a profile is taken as a site takes
it, of the smallest and a middle batch; then every point is a real train task in a fresh process, whose measured peak,
or whose seconds, are held against what the planner says. On a GPU, if there is one.
"""

import argparse
import itertools
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.planning.duration import fixed_seconds, step_seconds
from fedpipe_operator.planning.memory import predict_peak
from fedpipe_operator.sites.profile import SiteProfile, site_profile
from fedpipe_trainer import device
from fedpipe_trainer.adapters import GlobalUpdate, Site, attached
from fedpipe_trainer.contract import (
    Bits,
    CausalLM,
    Data,
    Forecast,
    Hyperparameters,
    Model,
    Plan,
    ProfileResult,
    ProfileTask,
    RunRef,
    SequenceClassification,
    TrainResult,
    TrainTask,
    parse_result,
)
from fedpipe_trainer.data import Example, collate
from fedpipe_trainer.model import facts, load
from fedpipe_trainer.steps import gradients, make_optimizer, training_mode, update

BITS: Final[tuple[Bits, ...]] = (4, 8, 16, 32)
DTYPES: Final = {4: torch.bfloat16, 8: torch.bfloat16, 16: torch.bfloat16, 32: torch.float32}
RANK: Final = 8
ALPHA: Final = 16.0
PAIRS: Final = 7
TIMED_STEPS: Final = 20
LABELS: Final = tuple(f"class-{i}" for i in range(20))
WORDS: Final = (
    "the",
    "river",
    "house",
    "makes",
    "a",
    "small",
    "table",
    "while",
    "nine",
    "old",
    "people",
    "carry",
    "green",
    "boxes",
    "to",
    "town",
)

NO_FORECAST: Final = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)

Objective = SequenceClassification | CausalLM
Step = Callable[[list[Example]], None]


@dataclass(frozen=True)
class Asked:
    """What is measured, and on what."""

    folder: Path
    task: str
    bits: Sequence[Bits]
    batches: Sequence[int]
    """In ascending order."""
    lengths: Sequence[int]
    """Likewise."""
    at_once: int


def main() -> None:
    """Print the tables that were asked for (all if none was)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=("classify", "generate"), required=True)
    parser.add_argument("--bits", type=int, nargs="+", choices=BITS, default=BITS)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 8))
    parser.add_argument("--lengths", type=int, nargs="+", default=(64, 128))
    parser.add_argument("--at-once", type=int, default=1, help="tasks side by side for --memory: on a GPU each one's peak is its own")
    for table in ("speed", "memory", "time"):
        parser.add_argument(f"--{table}", action="store_true")
    said = parser.parse_args()
    asked = Asked(said.model.resolve(), said.task, said.bits, sorted(said.batches), sorted(said.lengths), said.at_once)
    everything = not (said.speed or said.memory or said.time)
    if said.speed or everything:
        print_speed(asked)
    if said.memory or said.time or everything:
        with tempfile.TemporaryDirectory() as scratch:
            print_forecasts(asked, Path(scratch), memory=said.memory or everything, seconds=said.time or everything)


def objective_of(task: str, length: int) -> Objective:
    """The objective, its samples cut at `length` tokens."""
    if task == "classify":
        return SequenceClassification(labels=LABELS, max_length=length)
    return CausalLM(prompt="{text}", response="{answer}", max_length=length)


def print_speed(asked: Asked) -> None:
    """Tokens per second of both loops, and their ratio, at every bit width; the largest batch of the greatest length."""
    batch, length = asked.batches[-1], asked.lengths[-1]
    objective = objective_of(asked.task, length)
    print(f"{where()}; batch {batch} × {length}, rank {RANK}; medians of {PAIRS} alternating steps.\n")
    print("| bits | plain loop, tokens/s | ours, tokens/s | ratio |\n|---:|---:|---:|---:|")
    for bits in asked.bits:
        with our_step(asked.folder, bits, objective) as ours:
            plain = plain_step(asked.folder, bits, objective)
            seconds = alternate(plain, ours, examples_of(objective, batch))
        speeds = [batch * length / statistics.median(column) for column in seconds]
        ratio = statistics.median(p / o for p, o in zip(*seconds, strict=True))
        print(f"| {bits} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.3f} |", flush=True)
        del ours, plain
        device.release_freed()
    print()


def where() -> str:
    """The device, in the words of a table's heading."""
    chosen = device.choose()
    return f"CPU, {torch.get_num_threads()} threads" if chosen.type == "cpu" else torch.cuda.get_device_name(chosen)


def alternate(plain: Step, ours: Step, examples: list[Example]) -> tuple[list[float], list[float]]:
    """Seconds of each loop's steps, one of each by turns, after one of each that is not counted."""
    columns: tuple[list[float], list[float]] = ([], [])
    for pair in range(PAIRS + 1):
        for step, column in zip((plain, ours), columns, strict=True):
            began = time.perf_counter()
            step(examples)
            device.synchronise(device.choose())
            if pair:
                column.append(time.perf_counter() - began)
    return columns


@contextmanager
def our_step(folder: Path, bits: Bits, objective: Objective) -> Iterator[Step]:
    """A step as the train recipe takes it."""
    base = load(folder, bits, objective)
    site = Site({weight.name: RANK for weight in facts(folder, objective, ()).weights}, scale=lambda _weight: ALPHA / RANK)
    with attached(base, site, GlobalUpdate(), seed=0) as adapters, training_mode(adapters.model, checkpointing=False):
        optimizer = make_optimizer(Hyperparameters(), adapters)

        def step(examples: list[Example]) -> None:
            gradients(examples, objective, base, adapters=adapters, micro_batch=len(examples))
            update(optimizer, learning_rate=2e-4, max_grad_norm=1.0)

        yield step


def plain_step(folder: Path, bits: Bits, objective: Objective) -> Step:
    """A step as the libraries' own examples take it."""
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
    """A batch without padding; a language model has its targets in the second half."""
    length = objective.max_length
    ids = [[100 + (7 * i + 3 * j) % 900 for j in range(length)] for i in range(batch)]
    if isinstance(objective, SequenceClassification):
        return [Example(row, [i % len(LABELS)]) for i, row in enumerate(ids)]
    half = length // 2
    return [Example(row, [-100] * half + row[half:]) for row in ids]


def print_forecasts(asked: Asked, scratch: Path, *, memory: bool, seconds: bool) -> None:
    """What the planner says after a profile, against what tasks in fresh processes then measure."""
    began = time.perf_counter()
    site = profiled(asked, scratch)
    print(f"{where()}; rank {RANK}; profiled in {time.perf_counter() - began:.0f} s; {site.memory_bytes / 1e6:.0f} MB may be planned.\n")
    for bits, why in site.unsupported.items():
        print(f"Not supported at {bits} bits: {why}\n")
    if memory:
        print_memory(asked, site, scratch)
    if seconds:
        print_seconds(asked, site, scratch)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"The largest of these processes held {most / 1e6:.0f} MB of the machine's own memory.\n")


def print_memory(asked: Asked, site: SiteProfile, scratch: Path) -> None:
    """Predicted against measured peaks, of samples that fill the length."""
    ranks = {weight.name: RANK for weight in site.base.weights}
    points = [point for point in itertools.product(asked.bits, asked.batches, asked.lengths) if point[0] not in site.unsupported]

    def measured(point: tuple[Bits, int, int]) -> int:
        bits, batch, length = point
        plan = Plan(bits=bits, batch_size=batch, steps=3, ranks=ranks, forecast=NO_FORECAST)
        folder = scratch / "-".join(map(str, point))
        full = range(2 * length, 2 * length + 1)
        return trained(asked, length, plan, full, folder).measured.peak_memory_bytes

    print(f"Runtime before the model {site.runtime_bytes / 1e6:.0f} MB.\n")
    print("| bits | batch | length | predicted, MB | measured, MB | error |\n|---:|---:|---:|---:|---:|---:|")
    errors = []
    with ThreadPoolExecutor(asked.at_once) as max_concurrent:
        for (bits, batch, length), peak in zip(points, max_concurrent.map(measured, points), strict=True):
            predicted = predict_peak(site, bits=bits, batch=batch, length=length, ranks=ranks)
            errors.append(predicted / peak - 1)
            print(f"| {bits} | {batch} | {length} | {predicted / 1e6:.0f} | {peak / 1e6:.0f} | {errors[-1]:+.1%} |", flush=True)
    print(f"\nLargest error {max(abs(e) for e in errors):.1%}, mean {statistics.mean(abs(e) for e in errors):.1%}.\n")


def print_seconds(asked: Asked, site: SiteProfile, scratch: Path) -> None:
    """Predicted against measured seconds, of samples as mixed as the profile's: a step, and all that comes before the first.

    At the two largest batches: of three, one that the profile measured and one beyond.
    """
    ranks = {weight.name: RANK for weight in site.base.weights}
    print(f"Seconds, a step's the mean of {TIMED_STEPS}.\n")
    print("| bits | batch | a step: predicted | measured | error | set-up and load: predicted | measured |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for bits, batch in itertools.product(asked.bits, asked.batches[-2:]):
        if bits in site.unsupported:
            continue
        plan = Plan(bits=bits, batch_size=batch, steps=TIMED_STEPS, ranks=ranks, forecast=NO_FORECAST)
        spent = trained(asked, asked.lengths[-1], plan, mixed(asked), scratch / f"time-{bits}-{batch}").measured.seconds
        predicted, step = step_seconds(site, bits, batch), spent["train"] / TIMED_STEPS
        line = f"| {bits} | {batch} | {predicted:.3f} | {step:.3f} | {predicted / step - 1:+.0%} "
        print(f"{line}| {fixed_seconds(site, bits, upload=0, download=0):.1f} | {spent['load']:.1f} |", flush=True)
    print()


def profiled(asked: Asked, scratch: Path) -> SiteProfile:
    """The site as its profile and the planner see it, on samples that are mixed up to the greatest length."""
    folder = scratch / "profile"
    data = rows(folder, mixed(asked))
    objective = objective_of(asked.task, asked.lengths[-1])
    batches = (asked.batches[0], asked.batches[len(asked.batches) // 2])
    task = ProfileTask(**common(asked, folder), objective=objective, data=data, bits=tuple(asked.bits), batch_sizes=batches, rank=RANK)
    result = performed(task, folder)
    assert isinstance(result, ProfileResult)  # noqa: S101 - the task asked for it
    volume = {"persistentVolumeClaim": {"claimName": "data"}}
    spec = {"data": {"train": "train.jsonl", "validation": "validation.jsonl", "volume": volume}}
    return site_profile(EdgeSite.model_validate({"metadata": {"name": "site"}, "spec": spec}), result)


def trained(asked: Asked, length: int, plan: Plan, words: range, folder: Path) -> TrainResult:
    """What a train task says of itself, on samples of so many `words`, cut at `length` tokens."""
    task = TrainTask(
        **common(asked, folder),
        objective=objective_of(asked.task, length),
        data=rows(folder, words),
        plan=plan,
        hyperparameters=Hyperparameters(),
        adapter=(folder / "adapter.safetensors").as_uri(),
    )
    result = performed(task, folder)
    assert isinstance(result, TrainResult)  # noqa: S101 - likewise
    return result


def common(asked: Asked, folder: Path) -> dict[str, Any]:
    """The fields that every task has."""
    run = RunRef(namespace="benchmark", name="train-step", uid="0")
    return {"run": run, "site": "site", "model": Model(source=asked.folder.as_uri()), "result": (folder / "result.json").as_uri()}


def performed(task: ProfileTask | TrainTask, folder: Path) -> Any:  # noqa: ANN401 - the result of its kind
    """The result of a task done in a fresh process."""
    (folder / "task.json").write_text(task.to_json())
    done = subprocess.run([sys.executable, "-m", "fedpipe_trainer", folder / "task.json"], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a {task.kind} task ended with exit status {done.returncode}:\n{done.stderr[-4000:]}")
    return parse_result((folder / "result.json").read_text())


def mixed(asked: Asked) -> range:
    """Words of a sample whose length differs from row to row; some are cut."""
    return range(20, 3 * asked.lengths[-1] // 2)


def rows(folder: Path, words: range) -> Data:
    """200 rows of so many words, the same every time; a prompt is a third of them, its response the rest."""
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    draw = random.Random(0)  # noqa: S311 - no secret
    lines = []
    for i in range(200):
        text = [draw.choice(WORDS) for _ in range(draw.choice(words))]
        third = len(text) // 3
        row = {"text": " ".join(text), "label": LABELS[i % len(LABELS)], "answer": " ".join(text[third:])}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return Data(train=str(path), validation=str(path))


if __name__ == "__main__":
    main()
