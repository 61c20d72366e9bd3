"""The profile recipe on a toy model: model, data, memory and throughput, and what a site does not support."""

import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from toys import make_toy
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedpipe_trainer import device
from fedpipe_trainer.contract import (
    Bits,
    CausalLM,
    Data,
    EnergySource,
    FailureReason,
    GenerationSpeed,
    Hyperparameters,
    ImportanceMethod,
    Model,
    Outcome,
    ProfileResult,
    ProfileTask,
    RangeTest,
    RunRef,
    Seq2SeqLM,
    SequenceClassification,
    Throughput,
    WeightShape,
)
from fedpipe_trainer.data import Example
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.model import facts, load
from fedpipe_trainer.profiling import generation, throughput
from fedpipe_trainer.profiling.energy import EnergyMeter
from fedpipe_trainer.profiling.subject import Subject
from fedpipe_trainer.recipes import profile
from fedpipe_trainer.task_runtime import TaskRuntime

MIB = 2**20
CLASSES = SequenceClassification(max_length=32)


@pytest.fixture
def task(toy: Any, tmp_path: Path) -> ProfileTask:
    texts = ["short", "a text of a middling length", "one that is so long that it has to be cut at maxLength"]
    rows = [{"text": texts[i % 3], "label": "xyz"[i % 2]} for i in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "validation.jsonl").write_text("\n".join([json.dumps({"text": "other", "label": "z"})] * 2))
    return ProfileTask(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        model=Model(source=toy("mpnet").as_uri()),
        result="file:///nowhere",
        objective=CLASSES,
        data=Data(train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "validation.jsonl")),
        bits=(32, 16),
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
    assert (result.train_samples, result.validation_samples, result.longest_tokens) == (12, 2, 32)
    assert result.mean_tokens == pytest.approx((5 + 27 + 32) / 3)
    assert result.base_bytes[16] < result.base_bytes[32]
    assert result.unsupported == {}
    assert 0 < result.runtime_bytes < result.load_peak_bytes[32] < result.memory_bytes


def test_every_batch_is_measured_at_a_typical_length_and_the_largest_also_at_the_longest(task: ProfileTask, tmp_path: Path) -> None:
    result = profile.run(task, make_runtime(tmp_path))

    assert [(point.bits, point.batch_size, point.length) for point in result.throughput if point.lowest_layer == 0] == [
        (bits, batch, length) for bits in (32, 16) for batch, length in ((1, 27), (4, 27), (4, 32))
    ]
    assert all(point.tokens_per_second > 0 and point.evaluate_tokens_per_second > 0 for point in result.throughput)
    assert all(point.peak_memory_bytes > 0.9 * result.runtime_bytes for point in result.throughput)


def test_the_memory_of_a_mapped_base_is_that_of_all_its_pages(toy: Any, tmp_path: Path) -> None:
    folder, objective = tmp_path / "model", CausalLM(prompt="{a}", response="{b}")
    model = AutoModelForCausalLM.from_pretrained(toy("llama"))
    model.resize_token_embeddings(100_000, mean_resizing=False)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy("llama")).save_pretrained(folder)
    subject = Subject(
        load(folder, 32, objective), objective, facts(folder, objective, ()).weights, [Example([1, 2], [1, 2])], rank=2, seed=0
    )

    throughput.measure_steps(subject, [1], make_runtime(tmp_path))

    assert resident_bytes_of(folder / "model.safetensors") > 0.95 * (folder / "model.safetensors").stat().st_size


def resident_bytes_of(file: Path) -> int:
    """Bytes of this process's mappings of a file that are in memory."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    return sum(1024 * int(re.findall(r"^Rss: +(\d+)", one, re.MULTILINE)[0]) for one in mappings if str(file) in one)


def test_lengths_that_hardly_differ_are_measured_once(task: ProfileTask, tmp_path: Path) -> None:
    Path(task.data.train).write_text("\n".join(json.dumps({"text": "a" * (18 + i % 2), "label": "x"}) for i in range(12)))

    result = profile.run(task, make_runtime(tmp_path))

    assert [(point.batch_size, point.length) for point in result.throughput if (point.bits, point.lowest_layer) == (32, 0)] == [
        (1, 18),
        (4, 19),
    ]


def test_the_largest_batch_that_fits_is_also_measured_with_the_top_half_of_the_layers(task: ProfileTask, tmp_path: Path) -> None:
    result = profile.run(task, make_runtime(tmp_path))

    assert [(point.bits, point.batch_size, point.lowest_layer) for point in result.throughput if point.lowest_layer] == [
        (32, 4, 1),
        (16, 4, 1),
    ]


def test_a_second_depth_has_fewer_trained_parameters(task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    original = throughput.make_optimizer

    def counting(hyper: Any, adapters: Any) -> Any:
        trained.append(sum(parameter.numel() for key, parameter in adapters.trainable.items() if "lora" in key))
        return original(hyper, adapters)

    monkeypatch.setattr(throughput, "make_optimizer", counting)
    profile.run(task.model_copy(update={"bits": (32,)}), make_runtime(tmp_path))

    assert trained == [8 * 2 * 64, 4 * 2 * 64]


@pytest.mark.parametrize(("layers", "lowest"), [([0], None), ([0, 1], 1), ([0, 0, 1, 1, 2], 1), (range(12), 6), ([2, 3], 3)])
def test_the_second_depth_is_the_top_half_of_the_layers_and_one_layer_has_none(layers: Any, lowest: int | None) -> None:
    assert throughput.second_depth([WeightShape(name="w", d_out=1, d_in=1, layer=layer) for layer in layers]) == lowest


def test_the_cost_of_a_first_step_is_what_it_takes_longer_than_a_later_one(task: ProfileTask, tmp_path: Path) -> None:
    runtime = make_runtime(tmp_path)
    clock = SteppingClock(first=7.0, later=2.0)
    runtime.elapsed_seconds = clock.read  # type: ignore[method-assign]  # the test controls the time

    result = profile.run(task.model_copy(update={"bits": (32,), "batch_sizes": (1,)}), runtime)

    assert result.first_step_seconds == {32: 5.0}
    assert {(point.length / point.tokens_per_second) for point in result.throughput} == {2.0}


class SteppingClock:
    """A clock that is read before and after each piece of work: the first step takes `first` seconds, all other work `later`."""

    def __init__(self, *, first: float, later: float) -> None:
        # Loading the base is the first piece of work, the first step the second.
        self.seconds = iter([later, first])
        self.later, self.now, self.readings = later, 0.0, 0

    def read(self) -> float:
        self.readings += 1
        if self.readings % 2 == 0:
            self.now += next(self.seconds, self.later)
        return self.now


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        ("llama", CausalLM(prompt="{text} ", response="{label}", max_length=32)),
        ("t5", Seq2SeqLM(prompt="{text}", response="{label}", max_length=32)),
    ],
)
def test_the_speed_of_generating_answers_is_measured(task: ProfileTask, toy: Any, tmp_path: Path, model: str, objective: Any) -> None:
    asked = task.model_copy(update={"model": Model(source=toy(model).as_uri()), "objective": objective, "bits": (32,)})

    speed = profile.run(asked, make_runtime(tmp_path)).generation[32]

    # How it is divided is the next test's matter: on a busy machine more tokens may take less time.
    assert speed.prompt_seconds + speed.token_seconds + speed.sequence_token_seconds > 0


def test_a_classification_generates_nothing(task: ProfileTask, tmp_path: Path) -> None:
    assert profile.run(task.model_copy(update={"bits": (32,)}), make_runtime(tmp_path)).generation == {}


def test_what_a_token_costs_is_told_apart_from_what_each_prompt_adds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prompts of 3 s; tokens of 5 s, and 2 s more for each prompt that is answered at once."""
    runtime, now = make_runtime(tmp_path), [0.0]
    runtime.elapsed_seconds = lambda: now[0]  # type: ignore[method-assign]  # the test controls the time

    def generate(_model: Any, prompts: Any, _objective: Any, *, decoding: Any, **_: Any) -> None:
        assert decoding.min_new_tokens == decoding.max_new_tokens
        now[0] += 3.0 * len(prompts) + (decoding.max_new_tokens - 1) * (5.0 + 2.0 * len(prompts))

    monkeypatch.setattr(generation, "generate_answers", generate)
    objective = CausalLM(prompt="{a}", response="{b}")
    base = SimpleNamespace(model=None, pad_id=0, tokenizer=SimpleNamespace(eos_token_id=1))
    subject = Subject(base, objective, (), (), rank=1, seed=0)  # type: ignore[arg-type]  # no model is needed

    speed = generation.measure_generation(subject, [Example([5, 6, 7], [-100, -100, 7])], runtime)

    assert speed == GenerationSpeed(prompt_seconds=3.0, token_seconds=5.0, sequence_token_seconds=2.0)


def test_where_memory_does_not_suffice_the_speed_of_generating_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exceed(*_: Any, **__: Any) -> None:
        raise TaskFailed(FailureReason.OUT_OF_MEMORY, "too long")

    monkeypatch.setattr(generation, "generate_answers", exceed)
    base = SimpleNamespace(model=None, pad_id=0, tokenizer=SimpleNamespace(eos_token_id=1))
    subject = Subject(base, CausalLM(prompt="{a}", response="{b}"), (), (), rank=1, seed=0)  # type: ignore[arg-type]  # no model is needed

    assert generation.measure_generation(subject, [Example([5], [5])], make_runtime(tmp_path)) is None


def test_a_model_that_cannot_generate_keeps_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("index out of range in self")

    monkeypatch.setattr(generation, "generate_answers", fail)
    base = SimpleNamespace(model=None, pad_id=0, tokenizer=SimpleNamespace(eos_token_id=1))
    subject = Subject(base, CausalLM(prompt="{a}", response="{b}"), (), (), rank=1, seed=0)  # type: ignore[arg-type]  # no model is needed

    assert generation.measure_generation(subject, [Example([5], [5])], make_runtime(tmp_path)) is None


def test_a_prompt_as_long_as_the_model_allows_leaves_room_for_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = set[int]()

    def generate(_model: Any, prompts: Any, _objective: Any, *, decoding: Any, **_: Any) -> None:
        lengths.update(len(prompt) + decoding.max_new_tokens for prompt in prompts)

    monkeypatch.setattr(generation, "generate_answers", generate)
    base = SimpleNamespace(model=None, pad_id=0, tokenizer=SimpleNamespace(eos_token_id=1))
    objective = CausalLM(prompt="{a}", response="{b}", max_length=16)
    subject = Subject(base, objective, (), (), rank=1, seed=0)  # type: ignore[arg-type]  # no model is needed
    generation.measure_generation(subject, [Example([5] * 16, [-100] * 15 + [7])], make_runtime(tmp_path))

    assert max(lengths) <= 16


def test_a_profile_says_how_well_the_device_is_used(task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.count(0.0, 0.5)
    monkeypatch.setattr(
        throughput.energy, "meter", lambda _device, _processes: EnergyMeter(lambda: {"package": next(readings)}, {}, EnergySource.RAPL)
    )

    result = profile.run(task.model_copy(update={"bits": (32,)}), make_runtime(tmp_path))

    assert result.memory_bytes_per_second is not None
    assert result.memory_bytes_per_second > 1e8
    assert result.mfu is not None
    assert 0 < result.mfu < 1
    steps = [point for point in result.throughput if point.lowest_layer == 0]
    fastest = max(steps, key=lambda point: point.tokens_per_second)
    assert result.tokens_per_joule == pytest.approx(5 * fastest.batch_size * fastest.length / 0.5)
    assert result.energy_source == "RAPL"


def test_a_platform_without_energy_counters_reports_none(task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput.energy, "POWERCAP", tmp_path / "absent")

    result = profile.run(task.model_copy(update={"bits": (32,)}), make_runtime(tmp_path))

    assert (result.tokens_per_joule, result.energy_source) == (None, None)


def test_the_bandwidth_is_measured_where_the_task_has_urls_for_it(task: ProfileTask, tmp_path: Path) -> None:
    probe = (tmp_path / "store" / "probe").as_uri()
    result = profile.run(task.model_copy(update={"bits": (32,), "probe_write": probe, "probe_read": probe}), make_runtime(tmp_path))

    assert result.up_bits_per_second is not None
    assert result.down_bits_per_second is not None


# --- the scores of the weights


def test_every_target_weight_is_scored_on_two_halves(task: ProfileTask, tmp_path: Path) -> None:
    result = profile.run(task, make_runtime(tmp_path))

    assert result.base is not None
    assert result.importance is not None
    assert result.importance.problem == ""
    assert result.importance.samples == 12
    assert set(result.importance.first_half) == set(result.importance.second_half) == {weight.name for weight in result.base.weights}


def test_a_site_that_cannot_be_scored_has_a_profile_all_the_same(task: ProfileTask, tmp_path: Path) -> None:
    Path(task.data.train).write_text(json.dumps({"text": "the only one", "label": "z"}))

    result = profile.run(task, make_runtime(tmp_path))

    assert result.throughput
    assert result.importance is not None
    assert "they need 2 training samples, the site has 1" in result.importance.problem


def test_scores_that_are_not_wanted_cost_nothing(task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "measure_importance", lambda *_: pytest.fail("the weights were scored"))

    assert profile.run(task.model_copy(update={"importance": ImportanceMethod.NONE}), make_runtime(tmp_path)).importance is None


# --- the losses of learning rates

RANGE_TEST = RangeTest(
    learning_rates=(1e-3, 1e-2), steps=2, batch_size=4, validation_samples=5, seconds=1e6, hyperparameters=Hyperparameters(), alpha=8.0
)


def test_learning_rates_are_tested_on_the_base_that_is_loaded_for_the_scores(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Bits] = []
    original = profile.load

    def counting(folder: Path, bits: Bits, *how: Any) -> Any:
        loaded.append(bits)
        return original(folder, bits, *how)

    monkeypatch.setattr(profile, "load", counting)
    at_32_bits = task.model_copy(update={"bits": (32,)})
    without = profile.run(at_32_bits, make_runtime(tmp_path))
    result = profile.run(at_32_bits.model_copy(update={"range_test": RANGE_TEST}), make_runtime(tmp_path))

    assert without.range_test is None
    assert result.range_test is not None
    assert {one.learning_rate for one in result.range_test.rates} == {1e-3, 1e-2}
    assert result.importance == without.importance
    assert loaded == [32, 32, 32, 32]


def test_learning_rates_are_tested_without_scores_too(task: ProfileTask, tmp_path: Path) -> None:
    result = profile.run(
        task.model_copy(update={"bits": (32,), "importance": ImportanceMethod.NONE, "range_test": RANGE_TEST}), make_runtime(tmp_path)
    )

    assert result.importance is None
    assert result.range_test is not None
    assert result.range_test.problem == ""


@pytest.mark.parametrize(("rows", "used"), [(3, 3), (9, 5)])
def test_a_loss_is_of_the_validation_samples_that_there_are_and_of_no_more_than_are_asked_for(
    task: ProfileTask, tmp_path: Path, rows: int, used: int
) -> None:
    Path(task.data.validation).write_text("\n".join(json.dumps({"text": f"number {i}", "label": "x"}) for i in range(rows)))
    result = profile.run(task.model_copy(update={"bits": (32,), "range_test": RANGE_TEST}), make_runtime(tmp_path))

    assert result.range_test is not None
    assert result.range_test.samples == used
    assert result.validation_samples == rows


# --- labels


def test_a_column_that_cannot_be_one_of_labels_is_refused(task: ProfileTask, tmp_path: Path) -> None:
    Path(task.data.train).write_text("\n".join([json.dumps({"text": "a", "label": "b" * 1025})] * 2))

    with pytest.raises(TaskFailed, match=r"column 'label' has 2 different labels, the longest of 1025 characters; .* name the column"):
        profile.run(task, make_runtime(tmp_path))


# --- set-up


@pytest.fixture
def setup_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., float]:
    """A function that returns the set-up time of a profile whose first fetch takes 520 seconds, and the later ones 2."""

    def profile_after_download(task: ProfileTask, folder: Path) -> float:
        seconds, taken = iter((520.0, 2.0)), 0.0

        def fetch(_model: Model, _runtime: TaskRuntime) -> Path:
            nonlocal taken
            taken += next(seconds)
            return folder

        monkeypatch.setattr(profile, "fetch", fetch)
        monkeypatch.setattr("fedpipe_trainer.task_runtime.time", SimpleNamespace(monotonic=lambda: time.monotonic() + taken))
        return profile.run(task, make_runtime(tmp_path / "scratch")).setup_seconds

    return profile_after_download


def test_what_the_cache_keeps_of_the_first_fetch_is_no_part_of_the_set_up(
    task: ProfileTask, toy: Any, setup_seconds: Callable[..., float]
) -> None:
    with_cache = task.model_copy(update={"reuse": True, "bits": (16,), "batch_sizes": (1,)})

    assert 2 < setup_seconds(with_cache, toy("mpnet")) < 300


def test_without_a_cache_every_task_fetches_the_model(task: ProfileTask, toy: Any, setup_seconds: Callable[..., float]) -> None:
    assert setup_seconds(task.model_copy(update={"bits": (16,), "batch_sizes": (1,)}), toy("mpnet")) > 520


def test_with_a_cache_that_could_not_keep_the_model_every_task_fetches_it(
    task: ProfileTask, toy: Any, tmp_path: Path, setup_seconds: Callable[..., float]
) -> None:
    folder = Path(shutil.copytree(toy("mpnet"), tmp_path / "scratch" / "model"))

    assert setup_seconds(task.model_copy(update={"reuse": True, "bits": (16,), "batch_sizes": (1,)}), folder) > 520


# --- kept profiles


def profile_again(task: ProfileTask, folder: Path, monkeypatch: pytest.MonkeyPatch, **runtime: Any) -> ProfileResult | None:
    """Profile a second time; None if the site was measured again."""
    monkeypatch.setattr(profile, "measure", measure_again)
    try:
        return profile.run(task, make_runtime(folder, **runtime))
    except MeasuredAgainError:
        return None


def measure_again(*_: object) -> None:
    raise MeasuredAgainError


class MeasuredAgainError(Exception):
    """The site was not profiled from what it kept."""


@pytest.fixture
def quick(task: ProfileTask, monkeypatch: pytest.MonkeyPatch) -> ProfileTask:
    """A task whose measurement is made up."""
    point = Throughput(bits=32, batch_size=1, length=27, tokens_per_second=1e3, evaluate_tokens_per_second=3e3, peak_memory_bytes=10**9)

    def measure(task: ProfileTask, runtime: TaskRuntime, *_: object) -> ProfileResult:
        return ProfileResult(**runtime.result_header(task), outcome=Outcome.COMPLETED, train_samples=12, throughput=(point,))

    monkeypatch.setattr(profile, "measure", measure)
    return task.model_copy(update={"reuse": True})


def test_without_a_cache_of_the_site_every_profile_is_measured(quick: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine measured must not outlive the run unless the site has a place for it."""
    profile.run(quick, make_runtime(tmp_path))

    assert profile_again(quick.model_copy(update={"reuse": False}), tmp_path, monkeypatch) is None


def test_a_profile_is_measured_once(quick: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = profile.run(quick, make_runtime(tmp_path))
    assert first.train_samples == 12
    later = quick.model_copy(update={"run": RunRef(namespace="n", name="another", uid="v"), "attempt": 3})

    second = profile_again(later, tmp_path, monkeypatch)

    assert second is not None
    assert (second.run.name, second.attempt) == ("another", 3)
    same = {"run", "attempt", "measured"}
    assert second.model_dump(exclude=same) == first.model_dump(exclude=same)


def test_the_bandwidth_of_a_kept_profile_is_measured_anew(quick: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = (tmp_path / "probe").as_uri()
    assert profile.run(quick, make_runtime(tmp_path)).up_bits_per_second is None

    second = profile_again(quick.model_copy(update={"probe_write": probe, "probe_read": probe}), tmp_path, monkeypatch)

    assert second is not None
    assert second.up_bits_per_second is not None


def test_a_cache_that_does_not_work_is_a_problem_of_the_profile_until_it_does(
    quick: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "activations"
    blocked.write_text("a file where the folder should be")
    first = profile.run(quick, make_runtime(tmp_path))
    blocked.unlink()
    second = profile_again(quick, tmp_path, monkeypatch)
    shutil.rmtree(blocked)
    blocked.write_text("a file again")
    third = profile_again(quick, tmp_path, monkeypatch)

    assert second is not None
    assert third is not None
    assert second.cache_problem == ""
    assert first.cache_problem == third.cache_problem
    assert first.cache_problem.endswith("check the site's cache volume")


def test_a_read_only_cache_costs_no_profile_and_is_its_problem(quick: ProfileTask, tmp_path: Path, read_only_disk: Path) -> None:
    runtime = make_runtime(tmp_path)
    runtime.cache = read_only_disk

    result = profile.run(quick, runtime)

    assert result.outcome is Outcome.COMPLETED
    assert "(Read-only file system)" in result.cache_problem


def test_a_site_without_a_cache_has_no_problem_with_it(quick: ProfileTask, tmp_path: Path) -> None:
    (tmp_path / "activations").write_text("a file where the folder should be")

    assert profile.run(quick.model_copy(update={"reuse": False}), make_runtime(tmp_path)).cache_problem == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"run": RunRef(namespace="another-tenant", name="r", uid="u")},
        {"site": "b"},
        {"bits": (16,)},
        {"all_bits": True},
        {"batch_sizes": (2,)},
        {"rank": 3},
        {"seed": 1},
        {"target_modules": ("attn.q",)},
        {"importance": ImportanceMethod.SENSITIVITY},
        {"range_test": RANGE_TEST},
        {"objective": SequenceClassification(max_length=31)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_another_task_is_measured_itself(
    quick: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    profile.run(quick, make_runtime(tmp_path))

    assert profile_again(quick.model_copy(update=changed), tmp_path, monkeypatch) is None


def test_changed_data_is_measured_again(quick: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile.run(quick, make_runtime(tmp_path))
    with Path(quick.data.train).open("a") as file:
        file.write('\n{"text": "one more", "label": "x"}')

    assert profile_again(quick, tmp_path, monkeypatch) is None


def test_another_model_is_measured_again(quick: ProfileTask, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile.run(quick, make_runtime(tmp_path))

    assert profile_again(quick.model_copy(update={"model": Model(source=toy("bert").as_uri())}), tmp_path, monkeypatch) is None


def test_another_memory_limit_or_machine_is_measured_again(quick: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile.run(quick, make_runtime(tmp_path))

    assert profile_again(quick, tmp_path, monkeypatch, limit=10**11) is None
    monkeypatch.setattr(profile.hardware, "machine", lambda _device: {"device": "a new processor"})
    assert profile_again(quick, tmp_path, monkeypatch) is None


def test_a_profile_that_no_task_has_used_for_a_month_is_removed(quick: ProfileTask, tmp_path: Path) -> None:
    for site in ("used", "unused"):
        profile.run(quick.model_copy(update={"site": site}), make_runtime(tmp_path))
    for file in (tmp_path / "profiles").iterdir():
        os.utime(file, times=(0, 0))

    for site in ("used", "new"):
        profile.run(quick.model_copy(update={"site": site}), make_runtime(tmp_path))

    assert len(list((tmp_path / "profiles").iterdir())) == 2


@pytest.mark.parametrize("content", ["", "{", '{"kind": "train"}'])
def test_a_damaged_file_is_measured_again(quick: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    profile.run(quick, make_runtime(tmp_path))
    (file,) = (tmp_path / "profiles").iterdir()
    file.write_text(content)

    assert profile_again(quick, tmp_path, monkeypatch) is None


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_next_measurement(
    quick: ProfileTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profiles").write_text("a file where the folder should be")

    assert profile.run(quick, make_runtime(tmp_path)).outcome is Outcome.COMPLETED
    assert "the profile is not kept, the next run measures again" in caplog.text


# --- unusual models


class WithoutGradient(torch.nn.Module):
    """A last layer that computes in integers."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return (states * 16).round().to(torch.int32).to(states.dtype) / 16


@pytest.fixture
def causal(task: ProfileTask, toy: Any) -> ProfileTask:
    objective = CausalLM(prompt="{text}", response="{label}", max_length=32)
    return task.model_copy(update={"objective": objective, "model": Model(source=toy("llama").as_uri())})


def test_a_language_model_without_gradients_is_an_error_that_says_what_to_do(
    causal: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = profile.load

    def in_integers(folder: Path, bits: Bits, *how: Any) -> Any:
        base = original(folder, bits, *how)
        base.model.get_submodule("model").norm = WithoutGradient()
        return base

    monkeypatch.setattr(profile, "load", in_integers)

    with pytest.raises(TaskFailed, match=r"32 bits: the loss has no gradient.*use another base model.*16 bits: the loss has no") as failed:
        profile.run(causal, make_runtime(tmp_path))

    assert failed.value.reason is FailureReason.BAD_MODEL


def test_a_classifier_whose_body_has_no_gradients_is_profiled_by_its_head_and_has_no_scores(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = profile.load

    def in_integers(folder: Path, bits: Bits, *how: Any) -> Any:
        base = original(folder, bits, *how)
        base.model.get_submodule("mpnet.encoder").register_forward_hook(lambda _module, _inputs, output: _without_gradient(output))
        return base

    monkeypatch.setattr(profile, "load", in_integers)

    result = profile.run(task.model_copy(update={"bits": (32,)}), make_runtime(tmp_path))

    assert result.throughput
    assert result.importance is not None
    assert "no target weight receives a gradient at 32 bits" in result.importance.problem
    assert "use another base model" in result.importance.problem


def _without_gradient(output: Any) -> Any:
    output.last_hidden_state = WithoutGradient()(output.last_hidden_state)
    return output


def test_a_model_of_one_layer_is_profiled_at_its_only_depth(causal: ProfileTask, tmp_path: Path) -> None:
    folder = tmp_path / "one-layer"
    make_toy("llama", folder, layers=1)

    result = profile.run(causal.model_copy(update={"model": Model(source=folder.as_uri())}), make_runtime(tmp_path))

    assert result.base is not None
    assert result.base.layers == 1
    assert {point.lowest_layer for point in result.throughput} == {0}
    assert result.importance is not None
    assert len(result.importance.first_half) == 4


def test_a_bit_width_that_a_site_does_not_support_is_reported_with_the_reason(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = profile.load

    def without_16_bits(folder: Path, bits: Bits, *how: Any) -> Any:
        if bits == 16:
            raise RuntimeError("no 16-bit kernel for this device")
        return original(folder, bits, *how)

    monkeypatch.setattr(profile, "load", without_16_bits)
    result = profile.run(task, make_runtime(tmp_path))

    assert result.unsupported == {16: "no 16-bit kernel for this device"}
    assert {point.bits for point in result.throughput} == {32}


def test_a_site_that_supports_no_bit_width_fails_with_all_reasons(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_fits(*_: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(profile, "load", nothing_fits)

    needs = r"32 bits: needs more than 9000 MiB of memory; 16 bits: needs more than 9000 MiB of memory\. "
    with pytest.raises(TaskFailed, match=needs + r"The site has 9000 MiB: give it more than 9000Mi of memory, allow") as failed:
        profile.run(task, make_runtime(tmp_path, limit=9000 * MIB))

    assert failed.value.reason is FailureReason.OUT_OF_MEMORY


def test_a_site_that_would_need_more_memory_at_one_bit_width_only_is_told_how_much(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_works(_folder: Path, bits: Bits, *_how: Any) -> None:
        raise RuntimeError("can't allocate memory" if bits == 16 else "no 32-bit kernel")

    monkeypatch.setattr(profile, "load", nothing_works)

    with pytest.raises(TaskFailed, match=r"32 bits: no 32-bit kernel; 16 bits: needs more than .* give it more than 9000Mi") as failed:
        profile.run(task, make_runtime(tmp_path, limit=9000 * MIB))

    assert failed.value.reason is FailureReason.OUT_OF_MEMORY


def test_a_bit_width_that_does_not_fit_is_told_apart_from_one_that_is_not_supported(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = profile.load

    def without_32_bits(folder: Path, bits: Bits, *how: Any) -> Any:
        if bits == 32:
            raise RuntimeError("can't allocate memory")
        return original(folder, bits, *how)

    monkeypatch.setattr(profile, "load", without_32_bits)
    result = profile.run(task, make_runtime(tmp_path, limit=9000 * MIB))

    assert (result.unsupported, result.out_of_memory) == ({}, {32: 9000 * MIB})
    assert {point.bits for point in result.throughput} == {16}


def test_a_base_above_the_memory_limit_of_the_site_is_never_loaded_and_its_size_is_told(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "load", lambda *_: pytest.fail("it was loaded"))

    with pytest.raises(TaskFailed, match=r"The site has 1 MiB: give it more than (\d+)Mi of memory") as failed:
        profile.run(task, make_runtime(tmp_path, limit=MIB))

    told = re.search(r"more than (\d+)Mi", failed.value.message)
    assert told is not None
    assert int(told[1]) > psutil.Process().memory_info().rss / MIB / 2
    assert failed.value.reason is FailureReason.OUT_OF_MEMORY


@pytest.mark.parametrize(("cgroup", "beyond"), [(9000 * MIB, None), (9000 * MIB - 1, None), (8000 * MIB, 8000 * MIB)])
def test_the_memory_of_the_device_is_what_a_larger_claim_could_get(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: int, beyond: int | None
) -> None:
    """On a cluster the claim is also the limit of the pod's cgroup, in whole pages; a cgroup with less has another reason."""
    (tmp_path / "memory.max").write_text(f"{cgroup - cgroup % 4096}\n")
    monkeypatch.setattr(device, "_CGROUP_LIMITS", (tmp_path / "memory.max",))

    result = profile.run(task.model_copy(update={"bits": (32,), "batch_sizes": (1,)}), make_runtime(tmp_path, limit=9000 * MIB))

    assert result.memory_bytes <= 9000 * MIB
    assert result.device_memory_bytes == beyond or psutil.virtual_memory().total


def test_a_batch_that_would_run_out_of_memory_is_not_tried(task: ProfileTask, tmp_path: Path) -> None:
    large_batch = task.model_copy(update={"bits": (32,), "batch_sizes": (256, 100_000)})
    result = profile.run(large_batch, make_runtime(tmp_path, limit=psutil.Process().memory_info().rss + 10**9))

    assert {(point.batch_size, point.length) for point in result.throughput} == {(256, 32)}
    assert result.unsupported == {}


def test_fewer_bits_are_not_measured_where_memory_is_no_problem(task: ProfileTask, tmp_path: Path) -> None:
    result = profile.run(task.model_copy(update={"bits": (4, 8, 32)}), make_runtime(tmp_path))

    assert {point.bits for point in result.throughput} == {32}
    assert result.unsupported == {}


def test_fewer_bits_are_measured_where_a_plan_may_take_them_all_the_same(task: ProfileTask, tmp_path: Path) -> None:
    result = profile.run(task.model_copy(update={"bits": (4, 32), "batch_sizes": (1,), "all_bits": True}), make_runtime(tmp_path))

    assert {point.bits for point in result.throughput} == {4, 32}


def test_a_batch_that_no_longer_fits_in_a_later_step_is_left_out_and_nothing_is_measured_after_it(
    task: ProfileTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, some libraries do not recover after the process has run out of memory."""
    original, calls = throughput.compute_gradients, []

    def compute(examples: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(len(examples))
        if calls.count(4) == 2:
            raise TaskFailed(FailureReason.OUT_OF_MEMORY, "one sample does not fit")
        return original(examples, *arguments, **named)

    monkeypatch.setattr(throughput, "compute_gradients", compute)
    result = profile.run(task.model_copy(update={"bits": (32,), "importance": ImportanceMethod.NONE}), make_runtime(tmp_path))

    assert {(point.batch_size, point.lowest_layer) for point in result.throughput} == {(1, 0)}
    assert calls[-1] == 4
    assert result.unsupported == {}


def test_fewer_bits_are_measured_where_a_batch_does_not_fit(task: ProfileTask, tmp_path: Path) -> None:
    large_batch = task.model_copy(update={"bits": (4, 32), "batch_sizes": (256, 100_000)})
    result = profile.run(large_batch, make_runtime(tmp_path, limit=psutil.Process().memory_info().rss + 10**9))

    assert {point.bits for point in result.throughput} == {4, 32}


def test_a_profile_ends_on_a_request_to_stop(task: ProfileTask, tmp_path: Path) -> None:
    with pytest.raises(Terminated):
        profile.run(task, make_runtime(tmp_path, stopped=True))
