"""Training tasks for toy models, and a runtime to perform them."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedpipe_trainer.contract import CausalLM, Data, Forecast, Hyperparameters, Model, Plan, RunRef, TrainTask
from fedpipe_trainer.task_runtime import TaskRuntime

CAUSAL = CausalLM(prompt="{a}", response="{b}", max_length=24)
Q0, V1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
"""Two weights of the toy LLaMA."""
ROWS = 40


def a_training_task(model: Path, folder: Path, ranks: dict[str, int], *, steps: int = 4, bits: Any = 32, **changed: Any) -> TrainTask:
    """A task that trains a toy model on 40 rows, which are written into `folder` as the adapter will be; `changed` replaces fields."""
    rows = [{"a": f"turn {i} to the", "b": ("left", "right")[i % 2]} for i in range(ROWS)]
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    fields: dict[str, Any] = {
        "run": RunRef(namespace="n", name="r", uid="u"),
        "site": "a",
        "model": Model(source=model.as_uri()),
        "result": "file:///nowhere",
        "objective": CAUSAL,
        "contributors": 2,
        "data": Data(train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl")),
        "plan": Plan(bits=bits, batch_size=4, steps=steps, ranks=ranks, forecast=forecast),
        "hyperparameters": Hyperparameters(learning_rate=0.01),
        "adapter": (folder / "store" / "adapter.safetensors").as_uri(),
    }
    return TrainTask(**(fields | changed))


def make_runtime(folder: Path, ticks: Sequence[float] = ()) -> TaskRuntime:
    """A runtime in this folder; `ticks` are the values that its clock returns, one per call."""
    folder.mkdir(exist_ok=True)
    runtime = TaskRuntime(folder=folder, cache=folder, write_progress=lambda _progress: None, stop_requested=lambda: False)
    if ticks:
        clock = itertools.chain(ticks, itertools.repeat(ticks[-1]))
        runtime.elapsed_seconds = lambda: next(clock)  # type: ignore[method-assign]  # such a test controls the time
    return runtime


def at_urls(folder: Path, revision: str = "a", **fields: Any) -> Model:
    """The model of this folder as that of a bucket, with a URL for each file; `fields` are others of the model."""
    files = {path.name: path.as_uri() for path in folder.iterdir()}
    return Model(source="s3://bucket/toy", files=files, revision=revision * 64, **fields)
