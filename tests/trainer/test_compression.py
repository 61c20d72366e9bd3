"""Trainings with a codec on a toy model: what is sent, how large it is, what another attempt and the next round send."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toy_rounds import RecordingSource
from toy_training import Q0, V1, a_training_task, make_runtime

from fedpipe_operator.aggregation.encoded import open_update
from fedpipe_operator.aggregation.tensors import open_tensors
from fedpipe_operator.planning.sizes import update_file_bytes
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.codecs import ladder
from fedpipe_trainer.codecs.encoding import Fidelity
from fedpipe_trainer.contract import Codec, FailureReason, GlobalAdapter, SequenceClassification, TrainResult, TrainTask, WeightShape
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.recipes import train
from fedpipe_trainer.transfer import describe

Toy = Callable[[str], Path]
CLASSES: Final = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=24)
RANKS: Final = {Q0: 4, V1: 4}
SHAPES: Final = {Q0: (32, 32), V1: (16, 32)}
HEAD: Final = "base_model.model.score.weight"


def run_training(task: TrainTask, folder: Path) -> tuple[TrainResult, Path]:
    result = train.run(task, make_runtime(folder / "scratch"))
    return result, folder / "store" / "adapter.safetensors"


def decoded(path: Path, task: TrainTask, start: Path | None = None) -> dict[str, Any]:
    """The update as the operator sees it."""
    plan = RoundPlan.model_construct(
        weights=SHAPES,
        head={HEAD: (2, 32)} if isinstance(task.objective, SequenceClassification) else {},
        plans={"a": task.plan},
        codec=task.codec,
    )
    previous = open_tensors(RecordingSource(start.read_bytes())) if start else None
    scales = {weight: task.plan.scale(weight) for weight in RANKS}
    tensors = open_update(open_tensors(RecordingSource(path.read_bytes())), plan, "a", scales, previous)
    keys = [f"base_model.model.{weight}.lora_{factor}.weight" for weight in RANKS for factor in "AB"]
    return {key: tensors.read(key) for key in [*keys, *plan.head]}


@pytest.fixture
def make_task(toy: Toy, tmp_path: Path) -> Callable[..., TrainTask]:
    return lambda **changed: a_training_task(toy("llama"), tmp_path, RANKS, **changed)


@pytest.fixture
def plain(make_task: Any, tmp_path: Path) -> dict[str, Any]:
    """The same training without a codec."""
    return load_file(run_training(make_task(objective=CLASSES), tmp_path)[1])


@pytest.mark.parametrize(("type_", "error"), [("Float16", 1e-3), ("Int8", 0.02), ("Int4", 0.2)])
def test_what_arrives_is_close_to_what_was_trained(make_task: Any, plain: Any, tmp_path: Path, type_: str, error: float) -> None:
    task = make_task(objective=CLASSES, codec=Codec(type=type_))

    result, path = run_training(task, tmp_path)

    found = decoded(path, task)
    assert found.keys() == plain.keys()
    assert all(Fidelity.of(plain[key], found[key]).relative_error < error for key in plain)
    assert result.codecs == {type_: 5}
    assert result.update_cosine is not None
    assert result.update_relative_error is not None
    assert result.update_cosine > 0.98
    assert 0 < result.update_relative_error < error
    assert result.tensors == {key: tensor.shape for key, tensor in plain.items()}


@pytest.mark.parametrize("type_", ["Float16", "Int8", "Int4"])
def test_the_update_has_the_bytes_that_the_planner_forecasts(make_task: Any, tmp_path: Path, type_: str) -> None:
    codec = Codec(type=type_)

    _, path = run_training(make_task(objective=CLASSES, codec=codec), tmp_path)

    weights = [WeightShape(name=weight, d_out=d_out, d_in=d_in) for weight, (d_out, d_in) in SHAPES.items()]
    assert path.stat().st_size == update_file_bytes(weights, RANKS, {HEAD: (2, 32)}, ladder(codec, type_))


def test_with_identity_the_bytes_are_those_without_a_codec(make_task: Any, tmp_path: Path) -> None:
    before = run_training(make_task(objective=CLASSES), tmp_path)[1].read_bytes()

    result, path = run_training(make_task(objective=CLASSES, codec=Codec()), tmp_path)

    assert path.read_bytes() == before
    assert (result.codecs, result.update_cosine) == (None, None)


def test_a_factor_that_a_codec_would_spoil_is_sent_by_a_better_one_and_that_is_told(make_task: Any, tmp_path: Path) -> None:
    result, _ = run_training(make_task(codec=Codec(type="TopK", fraction=0.1)), tmp_path)

    assert result.codecs is not None
    assert result.codecs["Int4"] >= 2, "in round 1, A is no increment but random as a whole"
    assert sum(result.codecs.values()) == 4


def a_second_round(make_task: Any, tmp_path: Path, codec: Codec, **changed: Any) -> TrainTask:
    """The task of round 2, which starts from the first one's update as the global adapter."""
    first = make_task(objective=CLASSES)
    _, path = run_training(first, tmp_path)
    tensors = load_file(path)
    for key in tensors:
        if "lora_B" in key:
            tensors[key] = tensors[key] * np.float32(first.plan.scale(Q0))
    start = tmp_path / "global.safetensors"
    save_file(tensors, start)
    found = describe(start)
    adapter = GlobalAdapter(url=start.as_uri(), sha256=found.sha256, size=found.size)
    return make_task(objective=CLASSES, round=2, codec=codec, global_adapter=adapter, **changed)


def test_a_later_round_sends_increments_from_the_global_adapter(make_task: Any, tmp_path: Path) -> None:
    codec = Codec(type="Int8")
    exact = load_file(run_training(a_second_round(make_task, tmp_path, Codec()), tmp_path)[1])

    task = a_second_round(make_task, tmp_path, codec)
    _, path = run_training(task, tmp_path)

    found = decoded(path, task, tmp_path / "global.safetensors")
    start = load_file(tmp_path / "global.safetensors")
    for key in exact:
        begun = start[key] / np.float32(task.plan.scale(Q0)) if "lora_B" in key else start[key]
        assert Fidelity.of(exact[key] - begun, found[key] - begun).relative_error < 0.02, key


def test_another_attempt_at_a_round_sends_the_same_bytes_and_the_next_round_what_was_lost(make_task: Any, tmp_path: Path) -> None:
    codec = Codec(type="Int4")
    run_training(make_task(objective=CLASSES, codec=codec, round=1), tmp_path)
    task = a_second_round(make_task, tmp_path, codec)

    _, path = run_training(task, tmp_path)
    first_attempt = path.read_bytes()
    run_training(task.model_copy(update={"attempt": 1}), tmp_path)
    second_attempt = path.read_bytes()
    run_training(task.model_copy(update={"codec": Codec(type="Int4", error_feedback=False)}), tmp_path)

    assert first_attempt == second_attempt
    assert path.read_bytes() != first_attempt


def test_a_codec_of_a_newer_operator_is_a_task_that_cannot_be_done(make_task: Any, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match="there is no codec Magic: use Identity, TopK") as raised:
        run_training(make_task(codec=Codec(type="Magic")), tmp_path)

    assert raised.value.reason is FailureReason.BAD_TASK
