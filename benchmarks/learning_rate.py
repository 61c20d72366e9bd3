"""Compare the learning rate that the range test chooses with a grid: `python benchmarks/learning_rate.py run|table [CASE …]`.

For each case, a fleet of four sites makes the range test of their profiles, and the operator chooses a rate. Then the same federated run
is made at each rate of the grid: real training and the operator's aggregation in one process (as in `benchmarks/fleet`). Every
result is stored in `learning_rate.json` when it is complete, so a benchmark that was killed goes on. Models and data are from packages.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks" / "fleet")]

import torch  # noqa: E402 -- the path above comes first
from configuration import Problem, Server  # noqa: E402
from ingredients.models import model_folder  # noqa: E402
from ingredients.newsgroups import newsgroups  # noqa: E402
from ingredients.splitting import balanced_sample, dirichlet_shares, split_rows  # noqa: E402
from server import Update, adapter_file, aggregate, parse_adapter  # noqa: E402
from task import CACHE, Task  # noqa: E402
from training import ranks_of, steps, trainable  # noqa: E402

from fedpipe_operator.api import FineTuneSpec  # noqa: E402
from fedpipe_operator.planning import choose_learning_rate, range_test  # noqa: E402
from fedpipe_operator.planning.hyperparameters import LEARNING_RATES  # noqa: E402
from fedpipe_trainer.adapters import AdapterTensors, attach_adapters  # noqa: E402
from fedpipe_trainer.adapters.lora import FROZEN_ADAPTER  # noqa: E402
from fedpipe_trainer.contract import CausalLM, Objective, RangeTest, RangeTestResult, SequenceClassification  # noqa: E402
from fedpipe_trainer.data import Example, encode  # noqa: E402
from fedpipe_trainer.evaluation import EvaluationTotals, evaluate_batches, evaluation_mode  # noqa: E402
from fedpipe_trainer.model.architecture import target_weights  # noqa: E402
from fedpipe_trainer.model.base import load  # noqa: E402
from fedpipe_trainer.profiling.range_test import measure_rates  # noqa: E402
from fedpipe_trainer.profiling.subject import Subject  # noqa: E402
from fedpipe_trainer.task_runtime import TaskRuntime  # noqa: E402

RESULTS: Final = Path(__file__).with_suffix(".json")
SITES, ALPHA, SEED = 4, 0.5, 0
VALIDATION: Final = 64
"""Documents of each site that it does not train on."""
RANK: Final = 8


@dataclass(frozen=True)
class Case:
    """A model, a task, and the length of its runs."""

    model: str
    architecture: str
    objective: Callable[[list[dict[str, str]]], Objective]
    rounds: int
    steps: int
    test_documents: int
    max_length: int
    batch: int = 16
    modules: tuple[str, ...] = ()
    """`planning.targetModules`; empty: the attention projections."""


def groups(rows: list[dict[str, str]]) -> Objective:
    """Predict which of 20 groups a document is from."""
    return SequenceClassification(labels=tuple(sorted({row["label"] for row in rows})), max_length=32)


def topics(rows: list[dict[str, str]]) -> Objective:
    """Predict the first part of the group's name: one of 7 topics."""
    return SequenceClassification(label="topic", labels=tuple(sorted({row["topic"] for row in rows})), max_length=32)


def named(_rows: list[dict[str, str]]) -> Objective:
    """Write the name of the group."""
    return CausalLM(prompt="{text}\nNewsgroup:", response=" {label}", max_length=48)


_BERT = ("query", "key", "value", "output.dense", "intermediate.dense")
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CASES: Final = {
    "20 groups, MiniLM": Case("minilm", "bert", groups, rounds=6, steps=10, test_documents=400, max_length=32),
    "7 topics, MiniLM": Case("minilm", "bert", topics, rounds=6, steps=10, test_documents=400, max_length=32),
    "20 groups, MPNet": Case("mpnet", "mpnet", groups, rounds=6, steps=8, test_documents=400, max_length=32),
    "group's name, SmolLM2": Case("smollm2", "llama", named, rounds=5, steps=8, test_documents=200, max_length=48, batch=8),
    "20 groups, MiniLM, MLP too": Case("minilm", "bert", groups, rounds=6, steps=10, test_documents=400, max_length=32, modules=_BERT),
    "group's name, SmolLM2, MLP too": Case(
        "smollm2", "llama", named, rounds=5, steps=8, test_documents=200, max_length=48, batch=8, modules=_LLAMA
    ),
}


@dataclass(frozen=True)
class Fleet:
    """What a case trains on."""

    task: Task
    train: tuple[tuple[Example, ...], ...]
    """By site."""
    validation: tuple[tuple[Example, ...], ...]


@lru_cache(maxsize=1)
def load_fleet(name: str) -> Fleet:
    """The base at 16 bits, and the documents of each site: shares of the groups from a Dirichlet distribution."""
    case = CASES[name]
    train, test = ([row | {"topic": row["label"].partition(".")[0]} for row in rows] for rows in newsgroups(CACHE))
    objective = case.objective(train)
    base = load(model_folder(case.model, CACHE), 16, objective)
    labels = [row["label"] for row in train]
    shares = dirichlet_shares(labels, [1.0] * SITES, alpha=ALPHA, seed=SEED)
    rows = split_rows(labels, shares, seed=SEED)
    per_group = case.test_documents // len(set(labels))
    tested = [test[i] for i in balanced_sample([row["label"] for row in test], per_group, seed=SEED)]
    weights = target_weights(base.model, case.architecture, case.modules)
    task = Task(base, objective, weights, train=(), test=tuple(encode(tested, objective, base.tokenizer)), classes=())
    sites = [tuple(encode([train[i] for i in of_site], objective, base.tokenizer)) for of_site in rows]
    return Fleet(task, tuple(site[VALIDATION:] for site in sites), tuple(site[:VALIDATION] for site in sites))


def requested_test(case: Case) -> RangeTest:
    """The range test that the operator asks for in a run of this batch, with time for all of it."""
    spec = {
        "model": {"source": "file:///model"},
        "task": {"type": "SequenceClassification"},
        "store": {"bucket": "fedpipe"},
        "planning": {"batchSizes": [case.batch]},
        "rounds": {"deadline": "10h"},
    }
    test = range_test(FineTuneSpec.model_validate(spec))
    assert test is not None  # noqa: S101 -- the spec has no rate
    return test


def test_sites(fleet: Fleet, test: RangeTest) -> dict[str, RangeTestResult]:
    """The range test of each site."""
    results = {}
    for index, (train, validation) in enumerate(zip(fleet.train, fleet.validation, strict=True)):
        subject = Subject(fleet.task.base, fleet.task.objective, fleet.task.weights, train, rank=RANK, seed=SEED)
        with TemporaryDirectory() as folder:
            runtime = TaskRuntime(Path(folder), Path(folder), lambda _progress: None, lambda: False)
            results[f"site-{index}"] = measure_rates(test, subject, validation, micro_batch=test.batch_size, runtime=runtime)
    return results


def federated_run(name: str, rate: float) -> dict[str, Any]:
    """Test loss and accuracy of a federated run at this rate, at its end and at its half, and the processor seconds of its training."""
    case, fleet = CASES[name], load_fleet(name)
    problem = Problem(seed=SEED, dirichlet_alpha=ALPHA, max_length=case.max_length, batch_size=case.batch, learning_rate=rate)
    ranks, adapter, seconds, half = ranks_of(fleet.task, RANK, None), None, 0.0, None
    for number in range(1, case.rounds + 1):
        start, updates = parse_adapter(fleet.task, adapter), {}
        began = time.process_time()
        for index, examples in enumerate(fleet.train):
            with trainable(fleet.task, ranks, start, SEED) as adapters:
                losses = list(islice(steps(fleet.task, adapters, examples, problem, name=f"{index}/{number}"), case.steps))
                updates[f"site-{index}"] = Update(adapter_file(adapters.trainable), ranks, case.steps, len(examples))
            if not all(map(math.isfinite, losses)):
                return {"accuracy": 0.0, "loss": None, "seconds": seconds, "diverged": True}
        seconds += time.process_time() - began
        adapter, _ = aggregate(fleet.task, problem, Server(), updates, adapter)
        if number == case.rounds // 2:
            half = evaluate(fleet.task, parse_adapter(fleet.task, adapter))
    return evaluate(fleet.task, parse_adapter(fleet.task, adapter)) | {"seconds": round(seconds, 1), "half": half}


def evaluate(task: Task, adapter: AdapterTensors) -> dict[str, Any]:
    """Loss, and accuracy if it is a classification, of a global adapter."""
    totals, objective = EvaluationTotals(), task.objective
    with attach_adapters(task.base, FROZEN_ADAPTER, adapter, SEED), evaluation_mode(task.base.model):
        for batch in evaluate_batches(task.base.model, task.test, objective=objective, pad_id=task.base.pad_id, batch_size=64):
            totals.add(batch)
    hits = [totals.predicted[i][0] == example.labels[0] for i, example in enumerate(task.test)] if totals.predicted else []
    loss = totals.mean_loss if math.isfinite(totals.mean_loss) else None
    return {"accuracy": sum(hits) / len(hits) if hits else None, "loss": loss}


def range_tests(name: str) -> dict[str, Any]:
    """The range test of each site, and the processor seconds of all of them."""
    case, fleet = CASES[name], load_fleet(name)
    began = time.process_time()
    tests = test_sites(fleet, requested_test(case))
    return {"seconds": round(time.process_time() - began, 1), "sites": {site: json.loads(test.to_json()) for site, test in tests.items()}}


def chosen_rate(name: str, stored: dict[str, Any]) -> float:
    """The operator's choice for rounds of this case's steps."""
    tests = {site: RangeTestResult.model_validate(test) for site, test in stored[f"{name}: range test"]["sites"].items()}
    return choose_learning_rate(tests, CASES[name].steps).value


def work(name: str, stored: dict[str, Any]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What a case is made of, by key of its result: the test, then runs at the chosen rate and outwards from it."""
    yield f"{name}: range test", lambda: range_tests(name)
    if f"{name}: range test" not in stored:
        return
    chosen = chosen_rate(name, stored)
    for rate in sorted({chosen, *LEARNING_RATES}, key=lambda rate: abs(math.log(rate / chosen))):
        yield f"{name}: {rate:g}", lambda rate=rate: federated_run(name, rate)  # type: ignore[misc]  # the default binds this rate


def run(name: str, stored: dict[str, Any]) -> None:
    """Compute what is missing of a case, and store each result when it is complete."""
    for key, compute in work(name, stored):
        if key in stored:
            continue
        stored[key] = compute()
        print(f"{key}: {stored[key]}", flush=True)
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        partial.rename(RESULTS)


def row(name: str, stored: dict[str, Any]) -> str:
    """A row of the table; what is missing is named."""
    missing = [key for key, _ in work(name, stored) if key not in stored]
    if missing:
        return f"| {name} | not run: {', '.join(missing)} |"
    rate, runs = chosen_rate(name, stored), {rate: stored[f"{name}: {rate:g}"] for rate in LEARNING_RATES}
    best = min(runs, key=lambda rate: (-(runs[rate]["accuracy"] or 0.0), math.inf if runs[rate]["loss"] is None else runs[rate]["loss"]))
    chosen, steps_of_run = stored[f"{name}: {rate:g}"], CASES[name].steps * CASES[name].rounds
    cost = steps_of_run * stored[f"{name}: range test"]["seconds"] / chosen["seconds"]
    cells = [f"{rate:g}", f"{best:g}", _quality(chosen), _quality(runs[best]), f"{cost:.0f} of {steps_of_run}"]
    grid = ", ".join(_quality(runs[rate]) for rate in LEARNING_RATES)
    return f"| {name} | {' | '.join(cells)} | {grid} |"


def _quality(result: dict[str, Any]) -> str:
    if result["loss"] is None:
        return "diverged"
    accuracy = "" if result["accuracy"] is None else f"{100 * result['accuracy']:.1f} % · "
    return f"{accuracy}{result['loss']:.3f}"


def main() -> None:
    """Run cases, or print the table of what is stored."""
    parser = argparse.ArgumentParser(prog="python benchmarks/learning_rate.py", description=__doc__)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("cases", nargs="*", default=list(CASES), help="of " + "; ".join(CASES))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    for name in arguments.cases if arguments.command == "run" else ():
        run(name, stored)
    grid = ", ".join(f"{rate:g}" for rate in LEARNING_RATES)
    print(f"| case | chosen | best of the grid | quality, chosen | quality, best | cost of the test, in steps | all of {grid} |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(row(name, stored) for name in arguments.cases))


if __name__ == "__main__":
    main()
