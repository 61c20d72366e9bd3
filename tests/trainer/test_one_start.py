"""A training that first evaluates the adapter it starts from: one load for both, and an update that does not depend on it."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_training import CAUSAL, Q0, ROWS, V1, a_training_task, make_runtime

from fedpipe_trainer.contract import (
    EvaluateResult,
    EvaluateTask,
    Evaluation,
    FailureReason,
    GlobalAdapter,
    Hyperparameters,
    Outcome,
    Progress,
    SequenceClassification,
    TrainEvaluation,
    TrainResult,
    TrainTask,
)
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.model import clear_cache
from fedpipe_trainer.recipes import evaluate, train
from fedpipe_trainer.task_runtime import TaskRuntime

Toy = Callable[[str], Path]
CLASSES = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=24)
DROPOUT = Hyperparameters(learning_rate=0.01, dropout=0.3)


@pytest.fixture
def make_task(toy: Toy, tmp_path: Path) -> Callable[..., TrainTask]:
    """Makes training tasks; with `start`, from a global adapter of rank 8, of which the site trains four components."""

    def make(*, start: bool = True, **changed: Any) -> TrainTask:
        fields = {"global_adapter": a_global_adapter(toy("llama"), tmp_path / "earlier") if start else None} | changed
        return a_training_task(toy("llama"), tmp_path, {Q0: 4, V1: 4}, **({"hyperparameters": DROPOUT} | fields))

    return make


def a_global_adapter(model: Path, folder: Path) -> GlobalAdapter:
    """The update of another training, as if it were aggregated."""
    folder.mkdir(exist_ok=True)
    task = a_training_task(model, folder, {Q0: 8, V1: 8}, hyperparameters=Hyperparameters(learning_rate=0.05))
    train.run(task, make_runtime(folder / "scratch"))
    return as_global_adapter(folder / "store" / "adapter.safetensors")


def as_global_adapter(path: Path) -> GlobalAdapter:
    data = path.read_bytes()
    return GlobalAdapter(url=path.as_uri(), sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def evaluating(task: TrainTask, folder: Path, **changed: Any) -> TrainTask:
    """The same task, which evaluates first."""
    fields: dict[str, Any] = {"round": 3, "evaluation": Evaluation(max_samples=12, generations=2, max_new_tokens=4), "batch_size": 5}
    requested = TrainEvaluation(**(fields | {"result": evaluation_file(folder).as_uri()} | changed))
    return task.model_copy(update={"round": 4, "attempt": 1, "evaluation": requested})


def evaluation_file(folder: Path) -> Path:
    return folder / "store" / "evaluation.json"


def evaluation_in(folder: Path) -> EvaluateResult:
    return EvaluateResult.model_validate_json(evaluation_file(folder).read_text())


def run_training(task: TrainTask, folder: Path, runtime: TaskRuntime | None = None) -> tuple[TrainResult, bytes]:
    clear_cache()
    result = train.run(task, runtime or make_runtime(folder / "scratch"))
    return result, (folder / "store" / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_an_update_has_the_same_bytes_with_and_without_an_evaluation_before(make_task: Any, tmp_path: Path, bits: int) -> None:
    task = make_task(bits=bits)
    evaluated = evaluating(task, tmp_path)

    plain, expected = run_training(evaluated.model_copy(update={"evaluation": None}), tmp_path)
    result, actual = run_training(evaluated, tmp_path)

    assert actual == expected
    assert result.losses == plain.losses
    start, end = load_file(tmp_path / "earlier/store/adapter.safetensors"), load_file(tmp_path / "store/adapter.safetensors")
    key = f"base_model.model.{Q0}.lora_A.weight"
    assert not torch.equal(start[key][:4], end[key]), "without gradients of the first layer its adapter stays as it was"


@pytest.mark.parametrize("bits", [4, 32])
def test_the_next_task_of_the_process_evaluates_and_trains_as_the_first(make_task: Any, tmp_path: Path, bits: int) -> None:
    task = evaluating(make_task(bits=bits), tmp_path)

    _, first = run_training(task, tmp_path)
    evaluation = evaluation_in(tmp_path)
    train.run(task, make_runtime(tmp_path / "scratch"))

    assert (tmp_path / "store" / "adapter.safetensors").read_bytes() == first
    assert evaluation_in(tmp_path).model_copy(update={"measured": evaluation.measured}) == evaluation


def test_an_update_with_a_head_has_the_same_bytes_with_and_without_an_evaluation_before(make_task: Any, tmp_path: Path) -> None:
    evaluated = evaluating(make_task(start=False, objective=CLASSES), tmp_path)

    _, expected = run_training(evaluated.model_copy(update={"evaluation": None}), tmp_path)
    _, actual = run_training(evaluated, tmp_path)

    assert actual == expected


@pytest.mark.parametrize("start", [True, False], ids=["adapter", "base"])
def test_the_evaluation_is_that_of_an_evaluation_task(make_task: Any, tmp_path: Path, start: bool) -> None:
    task = evaluating(make_task(start=start), tmp_path)
    assert task.evaluation is not None
    alone = EvaluateTask(
        run=task.run,
        site="a",
        round=3,
        attempt=1,
        model=task.model,
        result="file:///nowhere",
        objective=CAUSAL,
        data=task.data,
        bits=32,
        batch_size=5,
        evaluation=task.evaluation.evaluation,
        global_adapter=task.global_adapter,
    )

    expected = evaluate.run(alone, make_runtime(tmp_path / "scratch"))
    run_training(task, tmp_path)

    actual = evaluation_in(tmp_path)
    assert actual.model_copy(update={"measured": expected.measured}) == expected
    assert (actual.round, actual.attempt, actual.samples) == (3, 1, 12)
    assert {"perplexity", "bleu"} <= actual.metrics.keys()


def test_the_adapter_is_that_of_the_round_before_and_not_the_trained_one(make_task: Any, tmp_path: Path) -> None:
    task = evaluating(make_task(), tmp_path)

    run_training(task, tmp_path)
    with_adapter = evaluation_in(tmp_path).loss
    run_training(task.model_copy(update={"global_adapter": None}), tmp_path)
    without = evaluation_in(tmp_path).loss

    assert with_adapter is not None
    assert without is not None
    assert with_adapter < without


def test_the_evaluation_is_sent_before_the_first_step(make_task: Any, tmp_path: Path) -> None:
    sent: list[tuple[str, bool]] = []
    runtime = make_runtime(tmp_path / "scratch")
    runtime.write_progress = lambda progress: sent.append((progress.phase, evaluation_file(tmp_path).exists()))

    run_training(evaluating(make_task(steps=2), tmp_path), tmp_path, runtime)

    phases = list(dict.fromkeys(sent))
    assert phases == [("load", False), ("evaluate", False), ("train", True)]


def test_base_and_adapter_are_loaded_once_for_both(make_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = evaluating(make_task(), tmp_path)
    loads: list[object] = []
    monkeypatch.setattr(evaluate, "load_cached", lambda *_: loads.append("by the evaluation"))

    result, _ = run_training(task, tmp_path)

    assert loads == []
    assert result.measured.downloaded_bytes == task.global_adapter.size
    assert result.measured.seconds["evaluate"] > 0


def test_without_the_request_a_task_evaluates_nothing(make_task: Any, tmp_path: Path) -> None:
    phases: set[str] = set()
    runtime = make_runtime(tmp_path / "scratch")
    runtime.write_progress = lambda progress: phases.add(progress.phase)

    run_training(make_task(), tmp_path, runtime)

    assert phases == {"load", "train"}
    assert not evaluation_file(tmp_path).exists()


def test_an_evaluation_without_data_says_so_and_the_training_goes_on(make_task: Any, tmp_path: Path) -> None:
    task = evaluating(make_task(), tmp_path)
    _, expected = run_training(task, tmp_path)
    (tmp_path / "validation.jsonl").unlink()

    result, actual = run_training(task, tmp_path)

    failure = evaluation_in(tmp_path).failure
    assert failure is not None
    assert failure.reason is FailureReason.BAD_DATA
    assert "validation.jsonl" in failure.message
    assert (result.outcome, actual) == (Outcome.COMPLETED, expected)


def test_a_diverged_adapter_is_reported_by_both_results(make_task: Any, tmp_path: Path) -> None:
    task = make_task()
    path = tmp_path / "earlier/store/adapter.safetensors"
    tensors = load_file(path)
    for factor in ("lora_A", "lora_B"):
        tensors[f"base_model.model.{Q0}.{factor}.weight"].fill_(1e30)  # finite, but not their product
    save_file(tensors, path)
    task = evaluating(task.model_copy(update={"global_adapter": as_global_adapter(path)}), tmp_path)

    with pytest.raises(TaskFailed, match="training diverged"):
        run_training(task, tmp_path)

    failure = evaluation_in(tmp_path).failure
    assert failure is not None
    assert (failure.reason, evaluation_in(tmp_path).outcome) == (FailureReason.DIVERGED, Outcome.FAILED)


def test_an_unexpected_error_of_the_evaluation_costs_the_evaluation_alone_and_quotes_no_data(
    make_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("turn 7 to the")

    monkeypatch.setattr(evaluate, "_metrics", fail)

    result, _ = run_training(evaluating(make_task(), tmp_path), tmp_path)

    failure = evaluation_in(tmp_path).failure
    assert result.outcome is Outcome.COMPLETED
    assert failure is not None
    assert failure.reason is FailureReason.UNEXPECTED
    assert "turn 7" not in failure.message


def test_a_request_to_stop_during_the_evaluation_ends_the_task_without_a_result(make_task: Any, tmp_path: Path) -> None:
    runtime = make_runtime(tmp_path / "scratch")
    runtime.stop_requested = lambda: True

    with pytest.raises(Terminated):
        run_training(evaluating(make_task(), tmp_path), tmp_path, runtime)

    assert not evaluation_file(tmp_path).exists()


def test_an_evaluation_that_takes_half_of_the_deadline_is_given_up_and_the_site_still_trains(make_task: Any, tmp_path: Path) -> None:
    passed = {"load": 0.0, "evaluate": 51.0, "train": 55.0}
    phase = ["load"]

    def record(progress: Progress) -> None:
        phase[0] = progress.phase

    runtime = make_runtime(tmp_path / "scratch")
    runtime.write_progress = record
    runtime.elapsed_seconds = lambda: passed[phase[0]]  # type: ignore[method-assign]  # this test controls the time

    result, _ = run_training(evaluating(make_task(deadline_seconds=100.0), tmp_path), tmp_path, runtime)

    failure = evaluation_in(tmp_path).failure
    assert failure is not None
    assert "did not end within 50 s of the task's start: lower evaluation.maxSamples or raise rounds.deadline" in failure.message
    assert result.steps == 4


def test_a_training_whose_evaluation_cannot_be_sent_fails_and_may_be_tried_again(make_task: Any, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    task = evaluating(make_task(), tmp_path, result=(tmp_path / "a file" / "evaluation.json").as_uri())

    with pytest.raises(TaskFailed) as failed:
        run_training(task, tmp_path)

    assert failed.value.reason is FailureReason.TRANSFER_FAILED
    assert not failed.value.reason.exit_code.is_final


def test_only_the_requested_number_of_rows_is_evaluated(make_task: Any, tmp_path: Path) -> None:
    run_training(evaluating(make_task(), tmp_path, evaluation=Evaluation(max_samples=1000, generations=0)), tmp_path)

    assert evaluation_in(tmp_path).samples == ROWS
