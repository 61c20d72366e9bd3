"""The profile recipe on a toy model: model, data, memory and throughput, and what a site does not support."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedpipe_trainer.contract import Bits, Data, Model, ProfileTask, RunRef, SequenceClassification
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.recipes import profile
from fedpipe_trainer.task_runtime import TaskRuntime

CLASSES = SequenceClassification(max_length=32)


@pytest.fixture
def task(toy: Any, tmp_path: Path) -> ProfileTask:
    texts = ["short", "a text of a middling length", "one that is so long that it has to be cut at maxLength"]
    rows = [{"text": texts[i % 3], "label": "xyz"[i % 2]} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "validation.jsonl").write_text(json.dumps({"text": "other", "label": "z"}))
    return ProfileTask(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        model=Model(source=toy("mpnet").as_uri()),
        result="file:///nowhere",
        objective=CLASSES,
        data=Data(train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "validation.jsonl")),
        bits=(32, 4),
        batch_sizes=(4, 1),
        rank=2,
    )


def make_runtime(folder: Path, *, stopped: bool = False, limit: int = 10**12) -> TaskRuntime:
    return TaskRuntime(
        folder=folder, cache=folder, write_progress=lambda _progress: None, stop_requested=lambda: stopped, memory_limit_bytes=limit
    )


def test_a_profile_has_what_the_planner_needs(task: ProfileTask, tmp_path: Path) -> None:
    result = profile.run(task, make_runtime(tmp_path))

    assert result.base is not None
    assert (result.base.architecture, result.base.layers, result.base.hidden_size) == ("mpnet", 2, 32)
    assert len(result.base.weights) == 8
    assert result.labels == ("x", "y", "z")
    assert (result.train_samples, result.validation_samples, result.longest_tokens) == (12, 1, 32)
    assert result.mean_tokens == pytest.approx((5 + 27 + 32) / 3)
    assert result.base_bytes[4] < result.base_bytes[32]
    assert result.unsupported == {}
    assert 0 < result.runtime_bytes < result.load_peak_bytes[32] < result.memory_bytes


def test_every_batch_is_measured_at_a_typical_length_and_the_largest_also_at_the_longest(task: ProfileTask, tmp_path: Path) -> None:
    result = profile.run(task, make_runtime(tmp_path))

    assert [(point.bits, point.batch_size, point.length) for point in result.throughput] == [
        (bits, batch, length) for bits in (4, 32) for batch, length in ((1, 27), (4, 27), (4, 32))
    ]
    assert all(point.tokens_per_second > 0 and point.evaluate_tokens_per_second > 0 for point in result.throughput)
    assert all(point.peak_memory_bytes >= result.runtime_bytes for point in result.throughput)


def test_a_bit_width_that_a_site_does_not_support_is_reported_with_the_reason(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = profile.load

    def without_4_bits(folder: Path, bits: Bits, objective: Any) -> Any:
        if bits == 4:
            raise RuntimeError("no 4-bit kernel for this device")
        return original(folder, bits, objective)

    monkeypatch.setattr(profile, "load", without_4_bits)
    result = profile.run(task, make_runtime(tmp_path))

    assert result.unsupported == {4: "no 4-bit kernel for this device"}
    assert {point.bits for point in result.throughput} == {32}


def test_a_site_that_supports_no_bit_width_fails_with_all_reasons(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_fits(*_: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(profile, "load", nothing_fits)

    with pytest.raises(TaskFailed, match="4 bits: out of memory; 32 bits: out of memory"):
        profile.run(task, make_runtime(tmp_path))


def test_a_base_above_the_memory_limit_of_the_site_is_never_loaded(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "load", lambda *_: pytest.fail("it was loaded"))

    with pytest.raises(TaskFailed, match=r"32 bits: the base alone needs .* MB, more than the site's memory limit of 1 MB leaves"):
        profile.run(task, make_runtime(tmp_path, limit=10**6))


def test_a_batch_that_would_run_out_of_memory_is_not_tried(task: ProfileTask, tmp_path: Path) -> None:
    large_batch = task.model_copy(update={"bits": (32,), "batch_sizes": (256, 100_000)})
    result = profile.run(large_batch, make_runtime(tmp_path, limit=psutil.Process().memory_info().rss + 10**9))

    assert [(point.batch_size, point.length) for point in result.throughput] == [(256, 32)]
    assert result.unsupported == {}


def test_a_profile_ends_on_a_request_to_stop(task: ProfileTask, tmp_path: Path) -> None:
    with pytest.raises(Terminated):
        profile.run(task, make_runtime(tmp_path, stopped=True))
