"""Speed and memory of the trainer's step, compared with a plain transformers + peft loop and with the planner's forecasts.

    python benchmarks/train_step.py MODEL_FOLDER --task classify|generate [--speed] [--memory] [--time]

Speed: both loops train LoRA of the same rank on the same model, batch and length in one process with alternating steps, so that a
slowdown of the machine affects both. Memory and time: a profile task runs as on a site, with the smallest and a middle batch; then every
point is a real train task in a fresh process, whose measured peak memory or seconds are compared with the planner's prediction. Runs on a
GPU, if there is one.
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
from fedpipe_operator.planning.memory_model import Step as PlannedStep
from fedpipe_operator.planning.memory_model import predict_peak
from fedpipe_operator.planning.time_model import fixed_seconds, step_seconds
from fedpipe_operator.sites import SiteProfile, site_profile
from fedpipe_trainer import device
from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
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
from fedpipe_trainer.steps import compute_gradients, make_optimizer, optimizer_step, training_mode

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
class Options:
    """The model, the task and the points to measure."""

    folder: Path
    task: str
    bits: Sequence[Bits]
    batches: Sequence[int]
    """In ascending order."""
    lengths: Sequence[int]
    """In ascending order."""
    parallel: int


def main() -> None:
    """Print the tables that the options select (all by default)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=("classify", "generate"), required=True)
    parser.add_argument("--bits", type=int, nargs="+", choices=BITS, default=BITS)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 8))
    parser.add_argument("--lengths", type=int, nargs="+", default=(64, 128))
    parser.add_argument(
        "--parallel",
        type=int,
        default=1,
        help="train tasks to run at the same time for --memory (on a GPU, peaks are measured per process)",
    )
    for table in ("speed", "memory", "time"):
        parser.add_argument(f"--{table}", action="store_true")
    arguments = parser.parse_args()
    options = Options(
        arguments.model.resolve(), arguments.task, arguments.bits, sorted(arguments.batches), sorted(arguments.lengths), arguments.parallel
    )
    all_tables = not (arguments.speed or arguments.memory or arguments.time)
    if arguments.speed or all_tables:
        print_speed(options)
    if arguments.memory or arguments.time or all_tables:
        with tempfile.TemporaryDirectory() as scratch:
            print_forecasts(options, Path(scratch), memory=arguments.memory or all_tables, seconds=arguments.time or all_tables)


def objective_of(task: str, length: int) -> Objective:
    """The objective, with samples truncated at `length` tokens."""
    if task == "classify":
        return SequenceClassification(labels=LABELS, max_length=length)
    return CausalLM(prompt="{text}", response="{answer}", max_length=length)


def print_speed(options: Options) -> None:
    """Tokens per second of both loops, and their ratio, at every bit width, for the largest batch and length."""
    batch, length = options.batches[-1], options.lengths[-1]
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
    print()


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


def print_forecasts(options: Options, scratch: Path, *, memory: bool, seconds: bool) -> None:
    """The planner's predictions from a profile, compared with what tasks in fresh processes measure."""
    start = time.perf_counter()
    site = run_profile(options, scratch)
    print(f"{device_name()}; rank {RANK}; the profile took {time.perf_counter() - start:.0f} s.")
    print(f"The planner may use {site.memory_bytes / 1e6:.0f} MB.\n")
    for bits, reason in site.unsupported.items():
        print(f"Not supported at {bits} bits: {reason}\n")
    if memory:
        print_memory(options, site, scratch)
    if seconds:
        print_seconds(options, site, scratch)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"Peak host memory of the largest of these processes: {largest / 1e6:.0f} MB.\n")


def print_memory(options: Options, site: SiteProfile, scratch: Path) -> None:
    """Predicted and measured peaks, for samples that fill the length."""
    ranks = {weight.name: RANK for weight in site.base.weights}
    points = [point for point in itertools.product(options.bits, options.batches, options.lengths) if point[0] not in site.unsupported]

    def measure(point: tuple[Bits, int, int]) -> int:
        bits, batch, length = point
        plan = Plan(bits=bits, batch_size=batch, steps=3, ranks=ranks, forecast=NO_FORECAST)
        folder = scratch / "-".join(map(str, point))
        full = range(2 * length, 2 * length + 1)
        return run_training(options, length, plan, full, folder).measured.peak_memory_bytes

    print(f"Runtime before the model {site.runtime_bytes / 1e6:.0f} MB.\n")
    print("| bits | batch | length | predicted, MB | measured, MB | error |\n|---:|---:|---:|---:|---:|---:|")
    errors = []
    with ThreadPoolExecutor(options.parallel) as pool:
        for (bits, batch, length), peak in zip(points, pool.map(measure, points), strict=True):
            predicted = predict_peak(site, bits=bits, step=PlannedStep(batch, length), ranks=ranks)
            errors.append(predicted / peak - 1)
            print(f"| {bits} | {batch} | {length} | {predicted / 1e6:.0f} | {peak / 1e6:.0f} | {errors[-1]:+.1%} |", flush=True)
    print(f"\nLargest error {max(abs(e) for e in errors):.1%}, mean {statistics.mean(abs(e) for e in errors):.1%}.\n")


def print_seconds(options: Options, site: SiteProfile, scratch: Path) -> None:
    """Predicted and measured seconds of a step, and of everything before the first, for samples of the same mixed lengths as the profile's.

    For the two largest batches: of three batches, one that the profile measured and one larger.
    """
    ranks = {weight.name: RANK for weight in site.base.weights}
    print(f"Seconds; those of a step are the mean of {TIMED_STEPS} steps.\n")
    print("| bits | batch | a step: predicted | measured | error | set-up and load: predicted | measured |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for bits, batch in itertools.product(options.bits, options.batches[-2:]):
        if bits in site.unsupported:
            continue
        plan = Plan(bits=bits, batch_size=batch, steps=TIMED_STEPS, ranks=ranks, forecast=NO_FORECAST)
        seconds = run_training(
            options, options.lengths[-1], plan, mixed_lengths(options), scratch / f"time-{bits}-{batch}"
        ).measured.seconds
        predicted, step = step_seconds(site, bits, batch), seconds["train"] / TIMED_STEPS
        line = f"| {bits} | {batch} | {predicted:.3f} | {step:.3f} | {predicted / step - 1:+.0%} "
        print(f"{line}| {fixed_seconds(site, bits, download=0):.1f} | {seconds['load']:.1f} |", flush=True)
    print()


def run_profile(options: Options, scratch: Path) -> SiteProfile:
    """Run a profile task on samples of mixed lengths; return the site as the planner sees it."""
    folder = scratch / "profile"
    data = write_rows(folder, mixed_lengths(options))
    objective = objective_of(options.task, options.lengths[-1])
    batches = (options.batches[0], options.batches[len(options.batches) // 2])
    task = ProfileTask(
        **common_fields(options, folder), objective=objective, data=data, bits=tuple(options.bits), batch_sizes=batches, rank=RANK
    )
    result = run_task(task, folder)
    assert isinstance(result, ProfileResult)  # noqa: S101 - a profile task has such a result
    volume = {"persistentVolumeClaim": {"claimName": "data"}}
    spec = {"data": {"train": "train.jsonl", "validation": "validation.jsonl", "volume": volume}}
    return site_profile(EdgeSite.model_validate({"metadata": {"name": "site"}, "spec": spec}), result)


def run_training(options: Options, length: int, plan: Plan, words: range, folder: Path) -> TrainResult:
    """Run a train task on samples of so many `words`, truncated at `length` tokens; return its result."""
    task = TrainTask(
        **common_fields(options, folder),
        objective=objective_of(options.task, length),
        data=write_rows(folder, words),
        plan=plan,
        hyperparameters=Hyperparameters(),
        adapter=(folder / "adapter.safetensors").as_uri(),
    )
    result = run_task(task, folder)
    assert isinstance(result, TrainResult)  # noqa: S101 - a train task has such a result
    return result


def common_fields(options: Options, folder: Path) -> dict[str, Any]:
    """The fields that every task has."""
    run = RunRef(namespace="benchmark", name="train-step", uid="0")
    return {"run": run, "site": "site", "model": Model(source=options.folder.as_uri()), "result": (folder / "result.json").as_uri()}


def run_task(task: ProfileTask | TrainTask, folder: Path) -> Any:  # noqa: ANN401 - the result of its kind
    """Run a task in a fresh process; return its result."""
    (folder / "task.json").write_text(task.to_json())
    process = subprocess.run([sys.executable, "-m", "fedpipe_trainer", folder / "task.json"], check=False, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"a {task.kind} task ended with exit status {process.returncode}:\n{process.stderr[-4000:]}")
    return parse_result((folder / "result.json").read_text())


def mixed_lengths(options: Options) -> range:
    """The numbers of words that a sample may have; the longest samples are truncated."""
    return range(20, 3 * options.lengths[-1] // 2)


def write_rows(folder: Path, words: range) -> Data:
    """Write 200 rows of so many words, the same at every call; the prompt is the first third of the words, the response the rest."""
    folder.mkdir(exist_ok=True)
    path = folder / "rows.jsonl"
    rng = random.Random(0)  # noqa: S311 - not for cryptography
    lines = []
    for i in range(200):
        text = [rng.choice(WORDS) for _ in range(rng.choice(words))]
        third = len(text) // 3
        row = {"text": " ".join(text), "label": LABELS[i % len(LABELS)], "answer": " ".join(text[third:])}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return Data(train=str(path), validation=str(path))


if __name__ == "__main__":
    main()
