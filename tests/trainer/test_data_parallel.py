"""Data parallel: two processes of one task, which exchange gradients by gloo, give the update of one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from toy_training import CAUSAL, Q0, V1, a_training_task, make_runtime

from fedpipe_trainer import steps
from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import (
    Bits,
    FailureReason,
    Hyperparameters,
    Objective,
    Preference,
    ProfileResult,
    ProfileTask,
    RangeTest,
    SequenceClassification,
    TrainResult,
    TrainTask,
)
from fedpipe_trainer.data import Example
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.model import load_cached
from fedpipe_trainer.parallel import LoadBase, SessionRequest, WorkerGroup, divide, open_session, worker_group
from fedpipe_trainer.recipes import profile, train
from fedpipe_trainer.task_runtime import TaskRuntime
from fedpipe_trainer.transfer import describe

Toy = Callable[[str], Path]
CLASSES: Final = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=24)
PAIRS: Final = Preference(prompt_column="a", chosen_column="b", rejected_column="a", max_length=24)
LONG: Final = SequenceClassification(labels=("a", "b"), max_length=256)
DROPOUT: Final = Hyperparameters(learning_rate=0.01, dropout=0.1)
PROXIMAL: Final = Hyperparameters(learning_rate=0.01, proximal_mu=1.0)
MIB: Final = 2**20
EXAMPLES: Final = st.lists(st.integers(1, 50), min_size=1, max_size=60).map(lambda lengths: [Example([1] * n, [n]) for n in lengths])


@given(EXAMPLES, st.integers(1, 70), st.integers(1, 9))
def test_the_micro_batches_of_all_processes_have_every_sample_once_and_in_order(examples: list[Example], size: int, processes: int) -> None:
    pieces = divide(examples, size, processes, seed=0)

    assert [example for piece in pieces for example in piece.examples] == examples
    assert all(1 <= len(piece.examples) <= size for piece in pieces)


@given(EXAMPLES, st.integers(1, 70), st.integers(2, 9))
def test_every_process_has_as_many_micro_batches_of_like_size_and_no_more_than_needed(
    examples: list[Example], size: int, processes: int
) -> None:
    pieces = divide(examples, size, processes, seed=0)
    counts = [len(pieces[rank::processes]) for rank in range(processes)]
    sizes = {len(piece.examples) for piece in pieces}

    assert max(counts) - min(counts) == (0 if len(examples) >= len(pieces) and len(pieces) % processes == 0 else 1)
    assert max(counts) == min(-(-len(examples) // (processes * size)), -(-len(examples) // processes))
    assert max(sizes) - min(sizes) <= 1


def test_dropout_depends_on_the_place_of_a_micro_batch_and_on_no_process() -> None:
    examples = [Example([1], [0])] * 8

    two, four = (divide(examples, 2, processes, seed=5) for processes in (2, 4))
    other = divide(examples, 2, 2, seed=6)

    assert two == four
    assert len({piece.seed for piece in (*two, *other)}) == 8
    assert {piece.seed for piece in divide(examples, 2, 1, seed=5)} == {None}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerGroup]:
    """Two processes for all tests that do not end one of them, since starting one takes seconds."""
    with worker_group(2, make_runtime(tmp_path_factory.mktemp("group") / "scratch")) as started:
        assert started is not None
        yield started


@dataclass
class Site:
    """Trains a toy model, alone or with the processes of a group."""

    model: Path
    folder: Path
    group: WorkerGroup
    monkeypatch: pytest.MonkeyPatch
    ranks: dict[str, int] = field(default_factory=lambda: {Q0: 4, V1: 4})

    def task(
        self, processes: int = 2, *, batch: int = 4, plan: Any = None, modules_to_save: tuple[str, ...] = (), **changed: Any
    ) -> TrainTask:
        task = a_training_task(self.model, self.folder, self.ranks, processes=processes, **changed)
        model = task.model.model_copy(update={"modules_to_save": modules_to_save})
        return task.model_copy(update={"model": model, "plan": task.plan.model_copy(update={"batch_size": batch} | (plan or {}))})

    def train(self, task: TrainTask, runtime: TaskRuntime | None = None) -> tuple[TrainResult, dict[str, torch.Tensor]]:
        @contextmanager
        def started(processes: int, _runtime: TaskRuntime) -> Iterator[WorkerGroup | None]:
            yield self.group if processes == 2 else None

        self.monkeypatch.setattr(train, "worker_group", started)
        result = train.run(task, runtime or make_runtime(self.folder / "scratch"))
        return result, load_file(self.folder / "store" / "adapter.safetensors")


@pytest.fixture
def site(toy: Toy, tmp_path: Path, group: WorkerGroup, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(toy("llama"), tmp_path, group, monkeypatch)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="a step at once"),
        pytest.param({"batch": 7, "micro_batch": 2}, id="odd micro-batches"),
        pytest.param({"batch": 3, "micro_batch": 1}, id="more micro-batches in one process than in the other"),
        pytest.param({"batch": 1}, id="fewer samples than processes"),
        pytest.param({"plan": {"gradient_checkpointing": True}}, id="recomputed activations"),
        pytest.param({"plan": {"lowest_layer": 1, "ranks": {V1: 4}}}, id="the upper layers"),
        pytest.param({"objective": CLASSES}, id="a head"),
        pytest.param({"objective": PAIRS, "batch": 7, "micro_batch": 2}, id="pairs of answers"),
        pytest.param({"modules_to_save": ("model.norm", "lm_head")}, id="modules that are trained whole"),
        # 16-bit sums are rounded by what they are summed with: so the same micro-batches as of one process.
        pytest.param({"bits": 4, "micro_batch": 2}, id="4 bits"),
        pytest.param({"hyperparameters": Hyperparameters(learning_rate=0.01, max_grad_norm=0.01)}, id="clipped"),
        pytest.param({"hyperparameters": PROXIMAL, "steps": 8, "objective": CLASSES}, id="a proximal term"),
    ],
)
def test_two_processes_give_the_update_of_one(site: Site, changed: dict[str, Any]) -> None:
    expected, of_one = site.train(site.task(1, **changed))
    result, of_two = site.train(site.task(2, **changed))

    assert largest_difference(of_one, of_two) < 1e-5
    assert result.losses == pytest.approx(expected.losses, rel=1e-5)
    assert (result.steps, result.samples, result.tokens) == (expected.steps, expected.samples, expected.tokens)
    assert max(float(of_two[key].abs().max()) for key in of_two if "lora_B" in key) > 1e-3, "B was 0 at the start"


def test_a_frozen_residual_and_the_trained_part_of_the_global_adapter_are_those_of_one_process(site: Site) -> None:
    site.train(site.task(1))
    path = site.folder / "global.safetensors"
    (site.folder / "store" / "adapter.safetensors").rename(path)
    artifact = describe(path)
    start = {"global_adapter": {"url": path.as_uri(), "sha256": artifact.sha256, "size": artifact.size}, "plan": {"ranks": {Q0: 2, V1: 4}}}

    _, of_one = site.train(site.task(1, **start))
    _, of_two = site.train(site.task(2, **start))

    assert largest_difference(of_one, of_two) < 1e-5


def test_dropout_is_the_same_every_time(site: Site) -> None:
    task = site.task(micro_batch=1, hyperparameters=DROPOUT)

    _, first = site.train(task)
    torch.manual_seed(99)
    _, again = site.train(task)
    _, without = site.train(site.task(micro_batch=1))

    assert largest_difference(first, again) == 0
    assert largest_difference(first, without) > 1e-4


@pytest.mark.parametrize(
    ("processes", "hyper", "tolerance"), [(2, DROPOUT, 0.0), (1, Hyperparameters(learning_rate=0.01), 1e-5), (2, PROXIMAL, 0.0)]
)
def test_a_stopped_training_resumes_bit_for_bit_and_with_another_number_of_processes_up_to_rounding(
    site: Site, processes: int, hyper: Hyperparameters, tolerance: float
) -> None:
    url = (site.folder / "store" / "checkpoint").as_uri()
    fields = {"hyperparameters": hyper, "steps": 6, "checkpoint_read": url, "checkpoint_write": url}
    _, undisturbed = site.train(site.task(2, **(fields | {"checkpoint_write": None})))
    runtime, told = make_runtime(site.folder / "scratch"), []
    runtime.write_progress = told.append
    runtime.stop_requested = lambda: any(one.step == 3 for one in told)

    with pytest.raises(Terminated):
        site.train(site.task(2, **fields), runtime)
    result, resumed = site.train(site.task(processes, **fields))

    assert result.resumed_from_step == 3
    assert largest_difference(undisturbed, resumed) <= tolerance


def test_the_cache_is_used_by_all_processes_and_counted_for_all(site: Site) -> None:
    passes = 2 * 4  # of four steps, two processes, and samples of two at once
    task = site.task(plan={"lowest_layer": 1, "ranks": {V1: 4}, "cache_activations": True}, steps=4)

    first, computed = site.train(task)
    again, found = site.train(task)

    assert [(one.cache_hits, one.cache_misses) for one in (first, again)] == [(0, passes), (passes, 0)]
    assert again.cache_held == 1
    assert largest_difference(computed, found) == 0


@dataclass(frozen=True)
class Long:
    """256 samples of 250 tokens for the base of a group."""

    model: Path
    group: WorkerGroup
    spec: AdapterSpec = field(default_factory=lambda: AdapterSpec({Q0: 2}, lambda _weight: 1.0))
    examples: tuple[Example, ...] = tuple(Example([1] * 250, [i % 2]) for i in range(64))

    def gradients(self, micro_batch: int, *, worker_may_use: int | None = None, alone: bool = False) -> tuple[int, dict[str, torch.Tensor]]:
        base = load_cached(self.model, 32, LONG)
        request = SessionRequest({Q0: 2}, {Q0: 1.0}, seed=0, memory_limit_bytes=worker_may_use)
        with (
            attach_adapters(base, self.spec, AdapterTensors(), 0) as adapters,
            open_session(None if alone else self.group, request, adapters.trainable) as session,
        ):
            _, size = steps.compute_gradients(self.examples, LONG, base, adapters=adapters, micro_batch=micro_batch, session=session)
            return size, {key: p.grad.clone() for key, p in adapters.trainable.items() if p.grad is not None}


def test_a_process_that_runs_out_of_memory_makes_all_compute_fewer_samples_at_once(toy: Toy, group: WorkerGroup) -> None:
    long = Long(toy("llama"), group)
    with group.loading(LoadBase(long.model, "", 32, LONG, None)):
        pass
    long.gradients(1)
    used = psutil.Process(group.workers[0].process.pid).memory_info().rss

    size, gradients = long.gradients(32, worker_may_use=int((used + 30 * MIB) / 0.92))  # 32 samples take 55 MiB at least
    unlimited, expected = long.gradients(32)

    assert unlimited == 32
    assert 1 <= size < 32
    assert largest_difference(expected, gradients) < 1e-6
    assert largest_difference(long.gradients(64, alone=True)[1], gradients) < 1e-6


def test_a_worker_that_fails_says_why_and_can_be_asked_again(toy: Toy, group: WorkerGroup, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskFailed, match=r"device 1: .*config\.json") as failed, group.loading(load_of(tmp_path / "empty")):
        pass

    assert failed.value.reason is FailureReason.BAD_MODEL
    with group.loading(load_of(toy("llama"))):
        pass


def test_a_failure_of_the_first_process_comes_before_those_of_the_others(group: WorkerGroup, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match="as the first says"), group.loading(load_of(tmp_path / "nowhere")):
        raise TaskFailed(FailureReason.BAD_MODEL, "as the first says")


def load_of(folder: Path, bits: Bits = 32, objective: Objective = CAUSAL) -> LoadBase:
    return LoadBase(folder, "", bits, objective, None)


def test_a_profile_measures_all_processes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (profiled(site, processes, monkeypatch) for processes in (1, 2))

    assert (one.processes, two.processes) == (1, 2)
    assert {point.batch_size for point in two.throughput} == {point.batch_size for point in one.throughput} == {1, 4}
    assert all(point.tokens_per_second > 0 for point in two.throughput)
    assert one.range_test is not None
    assert two.range_test is not None
    assert [rate.loss for rate in two.range_test.rates] == pytest.approx([rate.loss for rate in one.range_test.rates], rel=1e-4)


def test_a_profile_computes_the_reference_of_pairs_in_every_process_and_keeps_it_nowhere(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = profiled(site, 2, monkeypatch, objective=PAIRS)

    assert found.range_test is not None
    assert found.range_test.rates
    for folder in (site.folder, *(Path(psutil.Process(worker.process.pid).cwd()) for worker in site.group.workers)):
        assert not [*folder.glob("activations"), *folder.glob("*/activations")]


def profiled(site: Site, processes: int, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> ProfileResult:
    training = site.task(**changed)
    test = RangeTest(
        learning_rates=(1e-3,),
        steps=2,
        batch_size=4,
        validation_samples=8,
        seconds=1e6,
        hyperparameters=Hyperparameters(learning_rate=0.01),
    )
    task = ProfileTask(
        **training.model_dump(include={"run", "site", "model", "result", "objective", "contributors", "data"}),
        bits=(32,),
        processes=processes,
        importance="None",
        range_test=test,
    )
    runtime = make_runtime(site.folder / "scratch")
    monkeypatch.setattr(profile, "worker_group", lambda asked, _runtime: borrowed(site.group if asked == 2 else None))
    return profile.measure(task, runtime, site.model, 0.0)


@contextmanager
def borrowed(group: WorkerGroup | None) -> Iterator[WorkerGroup | None]:
    yield group
