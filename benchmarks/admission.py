"""What the admission of results costs: `python benchmarks/admission.py`.

An honest update's result, as a share of the seconds of the gate for its adapter, which is read, hashed and measured once more by the
aggregation; the seconds and memory of the largest results that are looked at: full of numbers, of names, of brackets; and those of the
largest that are admitted, of trainings of so many steps that their losses make megabytes.
"""

import hashlib
import json
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

import numpy as np
from safetensors.numpy import save

from fedpipe_operator.admission import (
    MAX_RESULT_BYTES,
    Asked,
    EvaluationBounds,
    RefusedError,
    UpdateBounds,
    admit_evaluation,
    admit_profile,
    admit_update,
)
from fedpipe_operator.aggregation.gate import Expected, check
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.contract import MAX_STEPS, Artifact, Forecast, Measured, Outcome, Plan, RunRef, TrainResult

RUN: Final = RunRef(namespace="benchmark", name="admission", uid="0")
WEIGHTS: Final = {f"model.layers.{layer}.self_attn.{kind}_proj": (576, 576) for layer in range(30) for kind in "qkvo"}
"""Those of SmolLM2-135M."""
RANK, STEPS = 16, 1000
LONG: Final = (100_000, MAX_STEPS)
REPEATS: Final = 5


class Bytes:
    """An adapter in memory."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset` on."""
        return self._data[offset : offset + length]


def main() -> None:
    """Measure and print all three."""
    plan = a_plan(STEPS)
    adapter = an_adapter(plan)
    result = a_result(plan, adapter)
    bounds, asked = UpdateBounds(plan.plans["ward"], plan.fingerprint), Asked(RUN, "ward", 1, 0)
    admission = seconds_of(lambda: admit_update(result, asked, bounds))
    admitted = admit_update(result, asked, bounds)
    gate = seconds_of(lambda: check(admitted, Bytes(adapter), Expected(plan=plan, site="ward", max_norm=1e9)))
    print(f"an honest update: result {len(result) / 1e3:.0f} kB, adapter {len(adapter) / 1e6:.1f} MB")
    print(f"admission {1e3 * admission:.1f} ms, gate {1e3 * gate:.1f} ms: {admission / gate:.1%}\n")
    print("| a result of 1 MiB full of | ms | peak MB |\n|---|---|---|")
    for name, data in worst().items():
        print(f"| {name} | {cost_of(partial(looked_at, data))} |")
    print("\n| an admitted update of | result in MB | ms | peak MB |\n|---|---|---|---|")
    for steps in LONG:
        plan = a_plan(steps)
        data, bounds = a_result(plan, adapter), UpdateBounds(plan.plans["ward"], plan.fingerprint)
        cost = cost_of(partial(admit_update, data, asked, bounds))
        print(f"| {steps:,} steps | {len(data) / 1e6:.1f} | {cost} |")


def cost_of(action: Callable[[], object]) -> str:
    """Milliseconds and peak megabytes, as two cells."""
    seconds = seconds_of(action)
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return f"{1e3 * seconds:.0f} | {peak / 1e6:.0f}"


def looked_at(data: bytes) -> None:
    """The bytes as a profile and as an evaluation."""
    with suppress(RefusedError):
        admit_profile(data, Asked(RUN, "ward", 0, 0))
    with suppress(RefusedError):
        bounds = EvaluationBounds(has_one_target=True, metrics={"accuracy", "macroF1"}, max_length=64)
        admit_evaluation(data, Asked(RUN, "ward", 1, 0), bounds)


def worst() -> dict[str, bytes]:
    """Results of the largest size that is looked at."""
    header = {"kind": "profile", "run": RUN.model_dump(), "site": "ward", "round": 0, "attempt": 0, "outcome": "Completed", "measured": {}}
    facts = {"architecture": "x", "parameters": 1, "quantisedParameters": 1, "layers": 1, "hiddenSize": 1, "intermediateSize": 1}
    base: dict[str, Any] = facts | {"attentionHeads": 1, "vocabularySize": 1}
    weights = [{"name": f"{i}", "dOut": 1, "dIn": 1} for i in range(20_000)]
    scores = {f"{i}": 1.0 for i in range(30_000)}
    importance = {"method": "Gradient", "samples": 1, "firstHalf": scores, "secondHalf": scores}
    return {
        "brackets": b"[" + b"[]," * (MAX_RESULT_BYTES // 3 - 2) + b"[]]",
        "numbers": b"[" + b"0," * (MAX_RESULT_BYTES // 2 - 2) + b"0]",
        "names": json.dumps({f"{i:x}": 0 for i in range(85_000)}).encode()[:MAX_RESULT_BYTES],
        "weights of a base model": json.dumps(header | {"fingerprint": "f" * 64, "base": base | {"weights": weights}}).encode(),
        "scores of weights": json.dumps(
            header | {"fingerprint": "f" * 64, "base": base | {"weights": []}, "importance": importance}
        ).encode(),
        "labels": json.dumps(header | {"labels": [f"{i:06d}" for i in range(100_000)]}).encode(),
    }


def seconds_of(action: Callable[[], object]) -> float:
    """The least of some."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return min(found)


def a_plan(steps: int) -> RoundPlan:
    """A round of one site that trains every weight."""
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    plan = Plan(bits=16, batch_size=8, steps=steps, ranks=dict.fromkeys(WEIGHTS, RANK), forecast=forecast)
    fields = {"round": 1, "started_at": 0.0, "fingerprint": "f" * 64, "selected": ("ward",), "evaluators": (), "needed": 1}
    return RoundPlan.model_validate(fields | {"weights": WEIGHTS, "plans": {"ward": plan}})


def an_adapter(plan: RoundPlan) -> bytes:
    """Random factors for it."""
    random = np.random.default_rng(0)
    tensors = {}
    for weight, (d_out, d_in) in plan.weights.items():
        tensors[f"base_model.model.{weight}.lora_A.weight"] = random.standard_normal((RANK, d_in)).astype(np.float32)
        tensors[f"base_model.model.{weight}.lora_B.weight"] = random.standard_normal((d_out, RANK)).astype(np.float32)
    return save(tensors)


def a_result(plan: RoundPlan, adapter: bytes) -> bytes:
    """What a trainer reports of it."""
    own = plan.plans["ward"]
    result = TrainResult(
        run=RUN,
        site="ward",
        round=1,
        attempt=0,
        outcome=Outcome.COMPLETED,
        fingerprint=plan.fingerprint,
        measured=Measured(),
        adapter=Artifact(name="adapter.safetensors", size=len(adapter), sha256=hashlib.sha256(adapter).hexdigest()),
        tensors={f"base_model.model.{weight}.lora_A.weight": (RANK, 576) for weight in WEIGHTS},
        ranks=own.ranks,
        scales={weight: own.scale(weight) for weight in own.ranks},
        steps=own.steps,
        samples=own.steps * 8,
        losses=tuple(1.0 + 1 / (step + 3) for step in range(own.steps)),
    )
    return result.to_json().encode()


if __name__ == "__main__":
    main()
