"""Speed and memory of the trainer's step: against a plain transformers + peft loop, and against the planner's forecast.

    python benchmarks/train_step.py MODEL_FOLDER --task classify|generate [--speed] [--memory]

Speed: both loops train LoRA of the same rank on the same model, batch and length in one process, a step of one after
a step of the other, so that a machine that slows down slows both. Memory: a profile is taken as a site takes it; then
every point is a real train task in a fresh process, whose measured peak is held against what the planner says.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.planning.memory import predict_peak
from fedpipe_operator.sites import SiteProfile, site_profile
from fedpipe_trainer.adapters import GlobalUpdate, Site, attached
from fedpipe_trainer.contract import (
    Bits,
    CausalLM,
    Data,
    Forecast,
    Hyperparameters,
    Model,
    Plan,
    ProfileManifest,
    ProfileTask,
    RunRef,
    SequenceClassification,
    TrainTask,
    UpdateManifest,
    parse_manifest,
)
from fedpipe_trainer.data import Example, collate
from fedpipe_trainer.model import facts, load
from fedpipe_trainer.steps import gradients, make_optimizer, training_mode, update

BITS: Final[tuple[Bits, ...]] = (4, 8, 16, 32)
DTYPES: Final = {4: torch.bfloat16, 8: torch.bfloat16, 16: torch.bfloat16, 32: torch.float32}
BATCHES: Final = (1, 4, 8)
LENGTHS: Final = (64, 128)
RANK: Final = 8
ALPHA: Final = 16.0
PAIRS: Final = 7
SPEED_BATCH, SPEED_LENGTH = 8, 128
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


def main() -> None:
    """Print the tables that were asked for (both if none was)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", choices=("classify", "generate"), required=True)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--memory", action="store_true")
    asked = parser.parse_args()
    if asked.speed or not asked.memory:
        print_speed(asked.model, objective_of(asked.task, SPEED_LENGTH))
    if asked.memory or not asked.speed:
        print_memory(asked.model.resolve(), asked.task)


def objective_of(task: str, length: int) -> Objective:
    """The objective, its samples cut at `length` tokens."""
    if task == "classify":
        return SequenceClassification(labels=LABELS, max_length=length)
    return CausalLM(prompt="{text}", response="{answer}", max_length=length)


def print_speed(folder: Path, objective: Objective) -> None:
    """Tokens per second of both loops, and their ratio, at every bit width."""
    tokens = SPEED_BATCH * SPEED_LENGTH
    print(f"Batch {SPEED_BATCH} × {SPEED_LENGTH}, rank {RANK}, {torch.get_num_threads()} threads; medians of {PAIRS} alternating steps.\n")
    print("| bits | plain loop, tokens/s | ours, tokens/s | ratio |\n|---:|---:|---:|---:|")
    for bits in BITS:
        with our_step(folder, bits, objective) as ours:
            plain = plain_step(folder, bits, objective)
            seconds = alternate(plain, ours, examples_of(objective))
        speeds = [tokens / statistics.median(column) for column in seconds]
        ratio = statistics.median(p / o for p, o in zip(*seconds, strict=True))
        print(f"| {bits} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.3f} |", flush=True)
    print()


def alternate(plain: Step, ours: Step, examples: list[Example]) -> tuple[list[float], list[float]]:
    """Seconds of each loop's steps, one of each by turns, after one of each that is not counted."""
    columns: tuple[list[float], list[float]] = ([], [])
    for pair in range(PAIRS + 1):
        for step, column in zip((plain, ours), columns, strict=True):
            began = time.perf_counter()
            step(examples)
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
    model = auto.from_pretrained(folder, dtype=DTYPES[bits], quantization_config=quantisation, device_map={"": "cpu"}, **labels)
    targets = sorted(weight.name for weight in facts(folder, objective, ()).weights)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)

    def step(examples: list[Example]) -> None:
        batch = collate(examples, objective, pad_id=0)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def examples_of(objective: Objective) -> list[Example]:
    """A batch without padding; a language model has its targets in the second half."""
    ids = [[100 + (7 * i + 3 * j) % 900 for j in range(SPEED_LENGTH)] for i in range(SPEED_BATCH)]
    if isinstance(objective, SequenceClassification):
        return [Example(row, [i % len(LABELS)]) for i, row in enumerate(ids)]
    half = SPEED_LENGTH // 2
    return [Example(row, [-100] * half + row[half:]) for row in ids]


def print_memory(folder: Path, task: str) -> None:
    """Predicted against measured peaks, a fresh process each."""
    with tempfile.TemporaryDirectory() as scratch:
        site = profiled(folder, task, Path(scratch))
        ranks = {weight.name: RANK for weight in site.base.weights}
        print(f"Rank {RANK}; runtime before the model {site.runtime_bytes / 1e6:.0f} MB.\n")
        print("| bits | batch | length | predicted, MB | measured, MB | error |\n|---:|---:|---:|---:|---:|---:|")
        errors = []
        for bits, batch, length in ((bits, batch, length) for bits in BITS for batch in BATCHES for length in LENGTHS):
            predicted = predict_peak(site, bits=bits, batch=batch, length=length, ranks=ranks)
            plan = Plan(bits=bits, batch_size=batch, steps=3, ranks=ranks, forecast=NO_FORECAST)
            measured = trained(folder, objective_of(task, length), plan, Path(scratch))
            errors.append(predicted / measured - 1)
            print(f"| {bits} | {batch} | {length} | {predicted / 1e6:.0f} | {measured / 1e6:.0f} | {errors[-1]:+.1%} |", flush=True)
    print(f"\nLargest error {max(abs(e) for e in errors):.1%}, mean {statistics.mean(abs(e) for e in errors):.1%}.")


def profiled(folder: Path, task: str, scratch: Path) -> SiteProfile:
    """The site as its profile and the planner see it, on samples of 20 to 128 tokens."""
    data = rows(scratch / "mixed.jsonl", shortest=20, longest=200)
    asked = ProfileTask(**common(folder, scratch), objective=objective_of(task, max(LENGTHS)), data=data, bits=BITS, rank=RANK)
    manifest = performed(asked, scratch)
    assert isinstance(manifest, ProfileManifest)  # noqa: S101 - the task asked for it
    volume = {"persistentVolumeClaim": {"claimName": "data"}}
    spec = {"data": {"train": "train.jsonl", "validation": "validation.jsonl", "volume": volume}}
    return site_profile(EdgeSite.model_validate({"metadata": {"name": "site"}, "spec": spec}), manifest)


def trained(folder: Path, objective: Objective, plan: Plan, scratch: Path) -> int:
    """The peak of a train task on samples that fill the length."""
    words = 2 * objective.max_length
    task = TrainTask(
        **common(folder, scratch),
        objective=objective,
        data=rows(scratch / "full.jsonl", shortest=words, longest=words),
        plan=plan,
        hyperparameters=Hyperparameters(),
        adapter=(scratch / "adapter.safetensors").as_uri(),
    )
    manifest = performed(task, scratch)
    assert isinstance(manifest, UpdateManifest)  # noqa: S101 - likewise
    return manifest.measured.peak_memory_bytes


def common(folder: Path, scratch: Path) -> dict[str, Any]:
    """The fields that every task has."""
    run = RunRef(namespace="benchmark", name="train-step", uid="0")
    return {"run": run, "site": "site", "model": Model(source=folder.as_uri()), "manifest": (scratch / "manifest.json").as_uri()}


def performed(task: ProfileTask | TrainTask, scratch: Path) -> Any:  # noqa: ANN401 - the manifest of its kind
    """The manifest of a task done in a fresh process."""
    (scratch / "task.json").write_text(task.to_json())
    subprocess.run([sys.executable, "-m", "fedpipe_trainer", scratch / "task.json"], check=True, capture_output=True)
    return parse_manifest((scratch / "manifest.json").read_text())


def rows(path: Path, *, shortest: int, longest: int) -> Data:
    """200 rows of so many words, the same every time; a prompt is a third of them, its response the rest."""
    draw = random.Random(0)  # noqa: S311 - no secret
    lines = []
    for i in range(200):
        words = [draw.choice(WORDS) for _ in range(draw.randint(shortest, longest))]
        third = len(words) // 3
        row = {"text": " ".join(words), "label": LABELS[i % len(LABELS)], "answer": " ".join(words[third:])}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))
    return Data(train=str(path), validation=str(path))


if __name__ == "__main__":
    main()
