"""The profile recipe on a toy model: what it says of model, data, memory and speed, and of what a site cannot do."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedpipe_trainer.contract import Bits, Data, Model, ProfileTask, RunRef, SequenceClassification
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.recipes import profile
from fedpipe_trainer.workplace import Workplace

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


def workplace(folder: Path, *, stopped: bool = False, limit: int = 10**12) -> Workplace:
    return Workplace(folder=folder, cache=folder, say=lambda _progress: None, stop_requested=lambda: stopped, memory_limit_bytes=limit)


def test_a_profile_tells_what_a_planner_asks(task: ProfileTask, tmp_path: Path) -> None:
    found = profile.run(task, workplace(tmp_path))

    assert found.base is not None
    assert (found.base.architecture, found.base.layers, found.base.hidden_size) == ("mpnet", 2, 32)
    assert len(found.base.weights) == 8
    assert found.labels == ("x", "y", "z")
    assert (found.train_samples, found.validation_samples, found.longest_tokens) == (12, 1, 32)
    assert found.mean_tokens == pytest.approx((5 + 27 + 32) / 3)
    assert found.base_bytes[4] < found.base_bytes[32]
    assert found.unsupported == {}
    assert 0 < found.runtime_bytes < found.load_peak_bytes[32] < found.memory_bytes


def test_every_batch_is_measured_at_a_usual_length_and_the_largest_at_the_longest(task: ProfileTask, tmp_path: Path) -> None:
    found = profile.run(task, workplace(tmp_path))

    assert [(point.bits, point.batch_size, point.length) for point in found.throughput] == [
        (bits, batch, length) for bits in (4, 32) for batch, length in ((1, 27), (4, 27), (4, 32))
    ]
    assert all(point.tokens_per_second > 0 and point.evaluate_tokens_per_second > 0 for point in found.throughput)
    assert all(point.peak_memory_bytes >= found.runtime_bytes for point in found.throughput)


def test_a_bit_width_that_a_site_cannot_do_is_told_with_the_reason(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = profile.load

    def without_4_bits(folder: Path, bits: Bits, objective: Any) -> Any:
        if bits == 4:
            raise RuntimeError("no 4-bit kernel for this device")
        return really(folder, bits, objective)

    monkeypatch.setattr(profile, "load", without_4_bits)
    found = profile.run(task, workplace(tmp_path))

    assert found.unsupported == {4: "no 4-bit kernel for this device"}
    assert {point.bits for point in found.throughput} == {32}


def test_a_site_that_can_do_no_bit_width_fails_with_all_reasons(task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_fits(*_: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(profile, "load", nothing_fits)

    with pytest.raises(TaskFailed, match="4 bits: memory ran out; 32 bits: memory ran out"):
        profile.run(task, workplace(tmp_path))


def test_a_base_above_the_sites_limit_is_never_loaded(task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "load", lambda *_: pytest.fail("it was loaded"))

    with pytest.raises(TaskFailed, match=r"32 bits: the base alone takes .* MB, more than the site's limit of 1 MB leaves"):
        profile.run(task, workplace(tmp_path, limit=10**6))


def test_a_batch_that_is_sure_to_run_out_of_memory_is_not_tried(task: ProfileTask, tmp_path: Path) -> None:
    greedy = task.model_copy(update={"bits": (32,), "batch_sizes": (256, 100_000)})
    found = profile.run(greedy, workplace(tmp_path, limit=psutil.Process().memory_info().rss + 10**9))

    assert [(point.batch_size, point.length) for point in found.throughput] == [(256, 32)]
    assert found.unsupported == {}


def test_a_profile_that_is_asked_to_stop_ends(task: ProfileTask, tmp_path: Path) -> None:
    with pytest.raises(Terminated):
        profile.run(task, workplace(tmp_path, stopped=True))
