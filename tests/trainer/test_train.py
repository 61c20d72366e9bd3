"""The train recipe on toy models: out of memory, deadlines, divergence, and several tasks in one process."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toy_training import CAUSAL, Q0, V1, a_training_task, make_runtime

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.sites import efficiency_of
from fedpipe_trainer import steps, transfer
from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import (
    EnergySource,
    FailureReason,
    Hyperparameters,
    Objective,
    Seq2SeqLM,
    SequenceClassification,
    TrainResult,
    TrainTask,
)
from fedpipe_trainer.data import IGNORED, Example, collate
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.losses import summed_loss
from fedpipe_trainer.model import Base, clear_cache, load
from fedpipe_trainer.profiling.energy import EnergyMeter
from fedpipe_trainer.recipes import train

Toy = Callable[[str], Path]
CLASSES = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=24)
SEQ2SEQ = Seq2SeqLM(prompt="{a}", response="{b}", max_length=24)


@pytest.fixture
def make_task(toy: Toy, tmp_path: Path) -> Callable[..., TrainTask]:
    return lambda ranks, **changed: a_training_task(toy("llama"), tmp_path, ranks, **changed)


def run_training(task: TrainTask, folder: Path) -> tuple[TrainResult, bytes]:
    result = train.run(task, make_runtime(folder / "scratch"))
    return result, (folder / "store" / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_training_lowers_the_loss_at_every_bit_width(make_task: Any, tmp_path: Path, bits: int) -> None:
    result, _ = run_training(make_task({Q0: 4, V1: 4}, bits=bits, steps=30, validate_samples=8), tmp_path)

    # The toy's frozen output layer has random weights, so the loss cannot become small.
    assert sum(result.losses[-5:]) < sum(result.losses[:5]) - 0.4
    assert result.validation_loss is not None
    assert result.validation_loss < result.losses[0]
    assert result.mfu is not None
    assert 0 < result.mfu < 1


def test_an_update_contains_only_the_trained_weights_and_the_head(make_task: Any, tmp_path: Path) -> None:
    result, _ = run_training(make_task({Q0: 4, V1: 0}, objective=CLASSES), tmp_path)

    tensors = load_file(tmp_path / "store" / "adapter.safetensors")
    assert (
        {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        == result.tensors
        == {
            "base_model.model.score.weight": (2, 32),
            f"base_model.model.{Q0}.lora_A.weight": (4, 32),
            f"base_model.model.{Q0}.lora_B.weight": (32, 4),
        }
    )
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert result.scales == {Q0: 8.0}


def test_a_task_gives_the_same_bytes_whatever_the_process_did_before(make_task: Any, tmp_path: Path) -> None:
    task, other = make_task({Q0: 4}), make_task({Q0: 2, V1: 8}, hyperparameters=Hyperparameters(learning_rate=0.1, dropout=0.3))
    clear_cache()
    _, first = run_training(task, tmp_path)
    torch.manual_seed(99)
    run_training(other, tmp_path)

    assert run_training(task, tmp_path)[1] == first


def test_checkpointed_activations_give_the_same_losses(make_task: Any, tmp_path: Path) -> None:
    task = make_task({Q0: 4})
    checkpointed = task.model_copy(update={"plan": task.plan.model_copy(update={"gradient_checkpointing": True})})
    plain, _ = run_training(task, tmp_path)
    recomputed, _ = run_training(checkpointed, tmp_path)

    assert recomputed.losses == pytest.approx(plain.losses, rel=1e-5)


def test_warm_up_raises_the_learning_rate_step_by_step(make_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def record(optimizer: Any, *, learning_rate: float, **others: Any) -> float:
        rates.append(learning_rate)
        return steps.optimizer_step(optimizer, learning_rate=learning_rate, **others)

    monkeypatch.setattr(train, "optimizer_step", record)
    run_training(make_task({Q0: 4}, steps=5, hyperparameters=Hyperparameters(learning_rate=0.3, warmup_steps=3)), tmp_path)

    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])


def test_a_deadline_ends_the_training_and_the_result_has_the_actual_steps(make_task: Any, tmp_path: Path) -> None:
    task = make_task({Q0: 4}, steps=100, deadline_seconds=20.0)

    result = train.run(task, make_runtime(tmp_path / "scratch", ticks=[float(second) for second in range(1000)]))

    assert 1 < result.steps < 20
    assert result.samples == 4 * result.steps
    assert len(result.losses) == result.steps


def test_one_step_is_trained_even_if_the_deadline_has_passed(make_task: Any, tmp_path: Path) -> None:
    result = train.run(make_task({Q0: 4}, deadline_seconds=1.0), make_runtime(tmp_path / "scratch", ticks=[50.0]))

    assert (result.steps, result.samples) == (1, 4)


def test_a_diverging_loss_is_an_error_that_names_the_step(make_task: Any, tmp_path: Path) -> None:
    task = make_task({Q0: 8, V1: 8}, steps=200, hyperparameters=Hyperparameters(learning_rate=1.0, max_grad_norm=1000.0))
    task = task.model_copy(
        update={"hyperparameters": task.hyperparameters.model_copy(update={"learning_rate": 1e30})}
    )  # above the bound of the field

    with pytest.raises(TaskFailed, match=r"training diverged: step \d+ has loss .*; lower the learning rate") as failed:
        run_training(task, tmp_path)

    assert failed.value.reason is FailureReason.DIVERGED


def test_a_plan_with_nothing_to_train_is_refused(make_task: Any, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match="nothing to train"):
        run_training(make_task({Q0: 0}), tmp_path)


def gradients_of(base: Base, examples: list[Example], objective: Objective, micro_batch: int) -> tuple[float, int, dict[str, torch.Tensor]]:
    weight = next(name for name, _ in base.model.named_modules() if name.endswith(("q_proj", "SelfAttention.q")))
    with attach_adapters(base, AdapterSpec({weight: 2}, scale=lambda _weight: 1.0), AdapterTensors(), seed=0) as adapters:
        loss, fitting_micro_batch = steps.compute_gradients(examples, objective, base, adapters=adapters, micro_batch=micro_batch)
        return loss, fitting_micro_batch, {key: p.grad.clone() for key, p in adapters.trainable.items() if p.grad is not None}


CASES = [
    ("llama", CAUSAL, [Example(list(range(1, n)), [IGNORED] * 2 + list(range(3, n))) for n in (20, 5, 9, 12)]),
    ("llama", CLASSES, [Example(list(range(1, n)), [n % 2]) for n in (20, 5, 9, 12)]),
    ("t5", SEQ2SEQ, [Example(list(range(1, n)), list(range(3, 2 * n))) for n in (10, 5, 9, 12)]),
]


@pytest.mark.parametrize(("name", "objective", "examples"), CASES)
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_a_split_step_has_the_loss_and_gradients_of_a_whole_one(
    toy: Toy, name: str, objective: Objective, examples: list[Example], micro_batch: int
) -> None:
    base = load(toy(name), 32, objective)

    whole_loss, _, whole = gradients_of(base, examples, objective, len(examples))
    loss, _, split = gradients_of(base, examples, objective, micro_batch)

    assert loss == pytest.approx(whole_loss, rel=1e-5)
    assert whole.keys() == split.keys()
    for key, gradient in whole.items():
        assert torch.allclose(split[key], gradient, atol=1e-6), key


@pytest.mark.parametrize(("name", "objective", "examples"), CASES)
def test_the_loss_is_that_of_transformers(toy: Toy, name: str, objective: Objective, examples: list[Example]) -> None:
    base = load(toy(name), 32, objective)
    batch = collate(examples, objective, base.pad_id)
    with torch.no_grad():
        loss, targets = summed_loss(base.model, batch, objective)
        expected = base.model(**batch).loss

    assert float(loss) / targets == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "message", ["[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", "CUDA out of memory"]
)
def test_a_micro_batch_that_does_not_fit_in_memory_is_halved_until_it_fits(toy: Toy, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    name, objective, examples = CASES[0]
    base = load(toy(name), 32, objective)
    expected = gradients_of(base, examples, objective, 4)[2]
    original = steps.summed_loss

    def fail_above_one(model: Any, batch: dict[str, torch.Tensor], objective: Objective) -> tuple[torch.Tensor, int]:
        if len(batch["input_ids"]) > 1:
            raise RuntimeError(message)
        return original(model, batch, objective)

    monkeypatch.setattr(steps, "summed_loss", fail_above_one)
    _, micro_batch, actual = gradients_of(base, examples, objective, 4)

    assert micro_batch == 1
    assert all(torch.allclose(actual[key], gradient, atol=1e-6) for key, gradient in expected.items())


def test_a_single_sample_that_does_not_fit_in_memory_fails_the_task(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(steps, "summed_loss", fail)

    with pytest.raises(TaskFailed, match="one sample of up to 19 tokens") as failed:
        gradients_of(load(toy("llama"), 32, CAUSAL), CASES[0][2], CAUSAL, 4)

    assert failed.value.reason is FailureReason.OUT_OF_MEMORY


def test_an_error_that_is_not_about_memory_is_raised(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(steps, "summed_loss", fail)

    with pytest.raises(RuntimeError, match="shapes do not match"):
        gradients_of(load(toy("llama"), 32, CAUSAL), CASES[0][2], CAUSAL, 4)


def test_under_a_memory_limit_the_micro_batch_is_halved_and_the_process_is_not_killed(toy: Toy) -> None:
    script = f"""
import psutil, torch
from pathlib import Path
from fedpipe_trainer import device, steps
from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import SequenceClassification
from fedpipe_trainer.data import Example
from fedpipe_trainer.model import load
objective = SequenceClassification(labels=("a", "b"), max_length=256)
base = load(Path({str(toy("llama"))!r}), 32, objective)
examples = [Example([1] * 250, [i % 2]) for i in range(256)]
with attach_adapters(base, AdapterSpec({{"{Q0}": 2}}, lambda _: 1.0), AdapterTensors(), 0) as adapters:
    steps.compute_gradients(examples[:1], objective, base, adapters=adapters, micro_batch=1)
    limit = psutil.Process().memory_info().rss + 100 * 2**20
    with device.memory_limit(base.device, limit):
        print(steps.compute_gradients(examples, objective, base, adapters=adapters, micro_batch=256)[1])
    print(psutil.Process().memory_info().rss <= limit)
    print(steps.compute_gradients(examples, objective, base, adapters=adapters, micro_batch=256)[1])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    limited, within, free = done.stdout.split()
    assert 1 <= int(limited) < 256
    assert within == "True"
    assert int(free) == 256


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def passing(self, seconds: float, function: Any) -> Any:
        """The function, which takes so many seconds."""

        def timed(*arguments: Any, **named: Any) -> Any:
            self.now += seconds
            return function(*arguments, **named)

        return timed


@pytest.mark.parametrize("number", [3, 6])
def test_the_granularity_is_that_of_steps_and_transfers_so_that_it_doubles_with_the_steps(
    make_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr(train, "compute_gradients", clock.passing(2.0, train.compute_gradients))
    monkeypatch.setattr(transfer, "send", clock.passing(0.5, transfer.send))
    runtime = make_runtime(tmp_path / "scratch")
    runtime._started = runtime._phase_started = 0.0  # the fields' defaults were made with the real clock

    result = train.run(make_task({Q0: 4}, steps=number), runtime)

    found = efficiency_of(AdmittedUpdate(result))
    assert found.granularity == pytest.approx(number * 2.0 / 0.5)
    assert found.bits_per_second == pytest.approx(8 * result.measured.uploaded_bytes / 0.5)
    assert found.tokens_per_second == pytest.approx(result.tokens / (2.0 * number))


def test_the_energy_of_the_steps_is_in_the_result_and_absent_where_the_platform_counts_none(
    make_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([{"gpu": 100.0}, {"gpu": 142.5}])
    monkeypatch.setattr(train, "meter", lambda _device, _processes: EnergyMeter(lambda: next(readings), {}, EnergySource.NVML))
    counted, _ = run_training(make_task({Q0: 4}, steps=2), tmp_path)
    monkeypatch.setattr(train, "meter", lambda _device, _processes: EnergyMeter(dict, {}, EnergySource.RAPL))
    uncounted, _ = run_training(make_task({Q0: 4}, steps=2), tmp_path)

    assert (counted.energy_joules, counted.energy_source) == (42.5, EnergySource.NVML)
    assert (uncounted.energy_joules, uncounted.energy_source) == (None, None)
