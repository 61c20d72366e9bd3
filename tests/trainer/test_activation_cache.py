"""Cached activations: the same bytes as without a cache, and a fault of the cache costs time only."""

import errno
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from small_disks import small_disk
from toy_training import CAUSAL, a_training_task, make_runtime

from fedpipe_trainer import activation_store
from fedpipe_trainer.activation_cache import cache_key
from fedpipe_trainer.activation_store import ActivationStore, find_problem
from fedpipe_trainer.adapters import AdapterTensors
from fedpipe_trainer.adapters.wire import Factors
from fedpipe_trainer.contract import Hyperparameters, Objective, SequenceClassification, TrainResult, TrainTask
from fedpipe_trainer.model import clear_cache, layers_of, load
from fedpipe_trainer.recipes import train
from fedpipe_trainer.task_runtime import TaskRuntime

Toy = Callable[[str], Path]
CLASSES: Final = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=24)
MODELS: Final = [
    ("llama", CAUSAL, {"model.layers.1.self_attn.v_proj": 4}),
    ("llama", CLASSES, {"model.layers.1.self_attn.v_proj": 4}),
    ("gpt2", CAUSAL, {"transformer.h.1.attn.c_attn": 4}),
    ("bert", CLASSES, {"bert.encoder.layer.1.attention.self.query": 4}),
    ("mpnet", CLASSES, {"mpnet.encoder.layer.1.attention.attn.q": 4}),
]
MIB: Final = 2**20
BATCHES: Final = 10
"""Batches of an epoch: 40 rows by fours."""


def a_task(folder: Path, tmp_path: Path, *, cached: bool, objective: Objective = CAUSAL, ranks: Any = None, **changed: Any) -> TrainTask:
    """Two epochs above the first layer, with dropout."""
    hyper = Hyperparameters(learning_rate=0.01, dropout=0.1)
    steps, bits = changed.pop("steps", 2 * BATCHES), changed.pop("bits", 32)
    lowest = changed.pop("lowest_layer", 1)
    fields = {"objective": objective, "hyperparameters": hyper} | changed
    task = a_training_task(folder, tmp_path, MODELS[0][2] if ranks is None else ranks, steps=steps, bits=bits, **fields)
    return task.model_copy(update={"plan": task.plan.model_copy(update={"lowest_layer": lowest, "cache_activations": cached})})


def run_training(task: TrainTask, tmp_path: Path, **runtime_fields: Any) -> tuple[TrainResult, bytes]:
    runtime = make_runtime(tmp_path / "scratch")
    runtime.cache = tmp_path / "cache"
    for name, value in runtime_fields.items():
        setattr(runtime, name, value)
    result = train.run(task, runtime)
    return result, (tmp_path / "store" / "adapter.safetensors").read_bytes()


def counts(result: TrainResult) -> tuple[int, int]:
    return result.cache_hits, result.cache_misses


@pytest.mark.parametrize(("name", "objective", "ranks"), MODELS)
def test_training_is_the_same_bit_for_bit_with_and_without_the_cache(
    toy: Toy, tmp_path: Path, name: str, objective: Objective, ranks: dict[str, int]
) -> None:
    plain, expected = run_training(a_task(toy(name), tmp_path, cached=False, objective=objective, ranks=ranks), tmp_path)
    cached = a_task(toy(name), tmp_path, cached=True, objective=objective, ranks=ranks)
    first, first_bytes = run_training(cached, tmp_path)
    again, again_bytes = run_training(cached, tmp_path)

    assert plain.losses == first.losses == again.losses
    assert expected == first_bytes == again_bytes
    assert [counts(result) for result in (plain, first, again)] == [(0, 0), (BATCHES, BATCHES), (2 * BATCHES, 0)]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_quantised_base_gives_the_same_bytes_too(toy: Toy, tmp_path: Path, bits: int) -> None:
    _, expected = run_training(a_task(toy("llama"), tmp_path, cached=False, bits=bits), tmp_path)
    result, actual = run_training(a_task(toy("llama"), tmp_path, cached=True, bits=bits), tmp_path)

    assert actual == expected
    assert counts(result) == (BATCHES, BATCHES)


def test_micro_batches_are_cached_one_by_one(toy: Toy, tmp_path: Path) -> None:
    _, expected = run_training(a_task(toy("llama"), tmp_path, cached=False, micro_batch=2), tmp_path)
    result, actual = run_training(a_task(toy("llama"), tmp_path, cached=True, micro_batch=2), tmp_path)

    assert actual == expected
    assert counts(result) == (2 * BATCHES, 2 * BATCHES)


def test_with_only_a_head_to_train_the_output_of_the_last_layer_is_cached(toy: Toy, tmp_path: Path) -> None:
    _, expected = run_training(a_task(toy("bert"), tmp_path, cached=False, objective=CLASSES, ranks={}, lowest_layer=2), tmp_path)
    result, actual = run_training(a_task(toy("bert"), tmp_path, cached=True, objective=CLASSES, ranks={}, lowest_layer=2), tmp_path)

    assert actual == expected
    assert counts(result) == (BATCHES, BATCHES)


def test_on_a_hit_neither_embeddings_nor_lower_layers_are_computed(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_training(a_task(toy("llama"), tmp_path, cached=True), tmp_path)
    computed: list[str] = []
    original = train.fit

    def fit(task: TrainTask, runtime: TaskRuntime, inputs: Any, adapters: Any, session: Any) -> Any:
        monkeypatch.setattr(torch.nn.functional, "embedding", lambda *_inputs, **_named: computed.append("embedding"))
        for part, layer in zip(("lower", "upper"), layers_of(inputs.base.model), strict=True):
            layer.get_submodule("mlp").register_forward_pre_hook(lambda _module, _inputs, part=part: computed.append(part))
        return original(task, runtime, inputs, adapters, session)

    monkeypatch.setattr(train, "fit", fit)
    run_training(a_task(toy("llama"), tmp_path, cached=True), tmp_path)
    clear_cache()  # with its hooks

    assert set(computed) == {"upper"}


def test_the_cache_survives_from_round_to_round(toy: Toy, tmp_path: Path) -> None:
    first, _ = run_training(a_task(toy("llama"), tmp_path, cached=True, round=1), tmp_path)
    second, _ = run_training(a_task(toy("llama"), tmp_path, cached=True, round=2), tmp_path)

    assert [counts(result) for result in (first, second)] == [(BATCHES, BATCHES), (2 * BATCHES, 0)]


def test_the_key_names_everything_that_the_states_depend_on(toy: Toy) -> None:
    def adapter(weight: str, value: float) -> AdapterTensors:
        return AdapterTensors({weight: Factors(torch.full((1, 32), value), torch.full((32, 1), value))})

    base = load(toy("llama"), 32, CAUSAL)
    lower, upper = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    keys = [
        cache_key(base, 1, AdapterTensors()),
        cache_key(base, 2, AdapterTensors()),
        cache_key(base, 1, adapter(lower, 1.0)),
        cache_key(base, 1, adapter(lower, 2.0)),
        cache_key(load(toy("llama"), 16, CAUSAL), 1, AdapterTensors()),
        cache_key(load(toy("gpt2"), 32, CAUSAL), 1, AdapterTensors()),
    ]

    assert len(set(keys)) == len(keys)
    assert cache_key(base, 1, adapter(upper, 1.0)) == cache_key(base, 1, adapter(upper, 2.0)) == keys[0]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[: len(data) // 2], lambda _: b"", lambda data: data[:-9] + b"?" * 9]
)
def test_a_damaged_file_is_computed_and_written_again(toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any) -> None:
    task = a_task(toy("llama"), tmp_path, cached=True)
    _, expected = run_training(task, tmp_path)
    path = next((tmp_path / "cache" / "activations").glob("*/[!.]*"))
    path.write_bytes(damage(path.read_bytes()))

    result, actual = run_training(task, tmp_path)

    assert actual == expected
    assert counts(result) == (2 * BATCHES - 1, 1)
    assert f"the cached activations in {path} are damaged and will be computed again" in caplog.text
    assert counts(run_training(task, tmp_path)[0]) == (2 * BATCHES, 0)


def test_on_a_full_volume_the_rest_is_computed(toy: Toy, tmp_path: Path, full_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = a_task(toy("llama"), tmp_path, cached=True)
    _, expected = run_training(task, tmp_path)

    result, actual = run_training(task, tmp_path, cache=full_disk)

    assert actual == expected
    assert result.cache_hits + result.cache_misses == 2 * BATCHES
    assert result.cache_misses > BATCHES
    assert 0 < result.cache_held == result.cache_hits / BATCHES < 0.5
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "there is no room for more cached activations" in warning
    assert "free space (or inodes) on the site's cache volume" in warning
    assert result.cache_problem in warning
    assert "free space" in result.cache_problem


def test_without_a_writable_folder_everything_is_computed(toy: Toy, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, expected = run_training(a_task(toy("llama"), tmp_path, cached=False), tmp_path)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache should be")

    result, actual = run_training(a_task(toy("llama"), tmp_path, cached=True), tmp_path, cache=blocked)

    assert actual == expected
    assert (*counts(result), result.cache_held) == (0, 2 * BATCHES, 0.0)
    assert caplog.text.count("activations cannot be cached in") == 1
    assert "check the site's cache volume" in result.cache_problem


def test_a_cache_that_can_be_written_has_no_problem_and_what_was_written_to_find_out_is_removed(tmp_path: Path) -> None:
    assert find_problem(tmp_path / "activations") == ""

    assert keys(tmp_path / "activations") == []


def test_the_problem_of_a_read_only_cache_is_found(read_only_disk: Path) -> None:
    root = read_only_disk / "activations"

    assert find_problem(root) == f"activations cannot be cached in {root} (Read-only file system): give the trainer a writable cache volume"


def test_the_problem_of_a_full_cache_is_found(full_disk: Path) -> None:
    problem = find_problem(full_disk / "activations")

    fix = "free space (or inodes) on the site's cache volume, or give the site a larger one"
    assert problem == f"there is no room for more cached activations in {full_disk}/activations: {fix}"


def test_a_volume_without_inodes_is_full_and_not_unwritable(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m,nr_inodes=3") as disk:
        (disk / "a").touch()
        (disk / "b").touch()

        problem = find_problem(disk / "activations")

    assert "(No space left on device): free space (or inodes) on the site's cache volume" in problem


def test_a_volume_that_the_trainer_may_not_write_is_to_let_its_user_or_group_do_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)

    fix = f"let user {os.geteuid()} or group {os.getegid()} read and write the site's cache volume"
    assert find_problem(tmp_path / "activations").endswith(f"(Permission denied): {fix}")


def test_where_the_limit_leaves_no_room_though_the_volume_does_the_limit_is_to_be_raised(tmp_path: Path) -> None:
    with closing(ActivationStore(tmp_path, "key", limit=1000)) as store:
        store.write("a", value(1.0))
        store.write("b", torch.zeros(1000))
        store.read("b", torch.float32)
        store.read("c", torch.float32)

    assert store.problem.endswith("raise FEDPIPE_ACTIVATION_CACHE_BYTES, which is 1000")


def test_the_problem_of_a_file_in_place_of_the_cache_is_found(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")

    assert find_problem(tmp_path / "cache" / "activations").endswith("(Not a directory): check the site's cache volume")


def test_the_problem_of_a_cache_that_returns_other_bytes_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"other bytes")

    assert find_problem(tmp_path).endswith("cannot be read back unchanged: give the trainer another cache volume")


def test_a_cache_that_is_full_of_what_no_task_uses_has_no_problem(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as root:
        with closing(ActivationStore(root, "old", limit=4 * MIB)) as store:
            store.write("a", torch.zeros(3 * MIB // 2, dtype=torch.uint8))

        assert find_problem(root) == ""


def test_a_cache_whose_limit_other_tasks_have_reached_has_no_problem_and_their_values_are_kept(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "8m") as root, closing(ActivationStore(root, "used")) as other:
        for name in "abc":
            other.write(name, torch.zeros(MIB, dtype=torch.uint8))

        assert find_problem(root) == ""
        assert [other.read(name, torch.uint8) is not None for name in "abc"] == [True] * 3


def value(number: float) -> torch.Tensor:
    return torch.full((4, 8, 32), number)


SIZE: Final = 4 * 8 * 32 * 4


def write_and_close(root: Path, key: str, *, age: float = 0.0) -> None:
    """As a task that ended so many seconds ago."""
    with closing(ActivationStore(root, key)) as store:
        store.write("a", value(1.0))
    os.utime(root / key, times=(time.time() - age,) * 2)


def keys(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def test_a_limit_is_kept_and_values_of_the_least_recently_used_key_go_first(tmp_path: Path) -> None:
    for key, age in (("old", 20.0), ("older", 30.0), ("read", 40.0)):
        write_and_close(tmp_path, key, age=age)
    with closing(ActivationStore(tmp_path, "read")) as store:
        store.read("a", torch.float32)

    ActivationStore(tmp_path, "new", limit=3 * (SIZE + 256)).write("a", value(2.0))

    assert keys(tmp_path) == ["new", "old", "read"]


def test_a_key_was_last_used_when_its_task_ended(tmp_path: Path) -> None:
    with closing(ActivationStore(tmp_path, "long")):
        write_and_close(tmp_path, "short", age=1.0)
        os.utime(tmp_path / "long", times=(0, 0))

    assert (tmp_path / "long").stat().st_mtime > (tmp_path / "short").stat().st_mtime


def test_a_run_whose_key_changes_in_every_round_does_not_fill_its_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for round_ in range(4):
        with closing(ActivationStore(tmp_path, f"round {round_}", limit=2 * (SIZE + 256))) as store:
            store.write("a", value(1.0))
            assert store.read("a", torch.float32) is not None

    assert keys(tmp_path) == ["round 2", "round 3"]
    assert not caplog.text


def test_values_that_another_task_uses_now_are_kept_however_long_it_takes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other, own = ActivationStore(tmp_path, "other"), ActivationStore(tmp_path, "own", limit=2 * SIZE)
    other.write("a", value(1.0))
    os.utime(tmp_path / "other", times=(0, 0))

    own.write("a", value(2.0))

    assert other.read("a", torch.float32) is not None
    assert own.read("a", torch.float32) is None
    assert "no room" in caplog.text


def test_values_are_kept_as_long_as_one_of_several_tasks_uses_them(tmp_path: Path) -> None:
    first, second = ActivationStore(tmp_path, "key"), ActivationStore(tmp_path, "key")
    first.write("a", value(1.0))
    first.close()
    ActivationStore(tmp_path, "other", limit=SIZE).write("a", value(2.0))
    kept = second.read("a", torch.float32)
    second.close()
    ActivationStore(tmp_path, "another", limit=SIZE).write("a", value(2.0))

    assert kept is not None
    assert keys(tmp_path) == ["another", "other"]


def test_the_activations_of_a_training_that_ended_can_be_removed(toy: Toy, tmp_path: Path) -> None:
    run_training(a_task(toy("llama"), tmp_path, cached=True), tmp_path)
    root = tmp_path / "cache" / "activations"

    ActivationStore(root, "other", limit=SIZE + 256).write("a", value(1.0))

    assert keys(root) == ["other"]


def test_values_that_an_earlier_version_kept_without_a_lock_can_be_removed(tmp_path: Path) -> None:
    write_and_close(tmp_path, "old")
    (tmp_path / "old" / ".lock").unlink()

    ActivationStore(tmp_path, "new", limit=SIZE + 256).write("a", value(2.0))

    assert keys(tmp_path) == ["new"]


def names(folder: Path) -> list[str]:
    """Of the values, and of what else may be there but the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_what_a_killed_task_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    left = tmp_path / "key" / f"a.7{activation_store._TEMPORARY}"
    left.write_bytes(b"half")
    os.utime(left, times=(0, 0))

    ActivationStore(tmp_path, "key").write("a", value(1.0))

    assert names(tmp_path / "key") == ["a"]


def test_values_that_cannot_be_read_are_a_problem_of_the_cache_unless_others_can(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, "key")
    store.write("a", value(1.0))
    (tmp_path / "key" / "b").mkdir()

    assert store.read("b", torch.float32) is None
    assert store.problem.endswith("(Is a directory): check the site's cache volume")
    store.read("a", torch.float32)
    assert store.problem == ""


@pytest.mark.parametrize(("room", "held"), [(10, 1.0), (8, 0.8), (5, 0.5), (3, 0.3)])
@pytest.mark.parametrize("passes", [1, 3])
def test_a_cache_with_room_for_some_of_the_values_tells_their_share_and_is_a_problem_below_half(
    tmp_path: Path, passes: int, room: int, held: float
) -> None:
    store = ActivationStore(tmp_path, "key", limit=room * (SIZE + 256))
    for name in passes * [str(number) for number in range(10)]:
        if store.read(name, torch.float32) is None:
            store.write(name, value(1.0))

    assert store.held == held
    assert ("raise FEDPIPE_ACTIVATION_CACHE_BYTES" in store.problem) == (held < 0.5)


def test_a_damaged_value_counts_as_held_when_it_is_written_again(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, "key")
    store.write("a", value(1.0))
    (tmp_path / "key" / "a").write_bytes(b"half")

    assert store.read("a", torch.float32) is None
    assert store.held == 0.0
    store.write("a", value(1.0))
    assert store.held == 1.0


def test_two_tasks_that_write_the_same_value_at_once_both_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both have the same process number, as in two pods."""
    first, second = ActivationStore(tmp_path, "key"), ActivationStore(tmp_path, "key")
    write_bytes = Path.write_bytes

    def write_then_let_the_other_write(path: Path, data: bytes) -> int:
        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        path.write_bytes(data[: len(data) // 2])
        assert second.read("a", torch.float32) is None, "half a value was read"
        path.write_bytes(data)
        second.write("a", value(1.0))
        return len(data)

    monkeypatch.setattr(Path, "write_bytes", write_then_let_the_other_write)
    first.write("a", value(1.0))
    first.write("b", value(2.0))

    for store in (first, second):
        assert torch.equal(store.read("a", torch.float32), value(1.0))  # type: ignore[arg-type]  # it is there
        assert torch.equal(store.read("b", torch.float32), value(2.0))  # type: ignore[arg-type]  # it is there
    assert names(tmp_path / "key") == ["a", "b"]
    assert not caplog.text


def test_concurrent_tasks_read_what_either_has_written_or_compute_it(tmp_path: Path) -> None:
    names, start = [str(number) for number in range(40)], threading.Barrier(2)

    def values_of_a_task(order: int) -> list[torch.Tensor]:
        store, values = ActivationStore(tmp_path, "key"), dict[str, torch.Tensor]()
        start.wait()
        for name in names[::order]:
            cached = store.read(name, torch.float32)
            values[name] = value(float(name)) if cached is None else cached
            if cached is None:
                store.write(name, values[name])
        assert store.hits + store.misses == len(names)
        return [values[name] for name in names]

    with ThreadPoolExecutor(2) as pool:
        tasks = list(pool.map(values_of_a_task, (1, -1)))

    for values in [*tasks, [ActivationStore(tmp_path, "key").read(name, torch.float32) for name in names]]:
        assert all(one is not None and torch.equal(one, value(float(name))) for one, name in zip(values, names, strict=True))


def use_keys_in_turn(root: Path, task: str) -> list[str]:
    """The values that a task lost while it used them, with one key after the other and room for three in the cache."""
    lost = []
    for key in range(12):
        with closing(ActivationStore(root, f"{task}-{key}", limit=12 * (SIZE + 256))) as store:
            for name in range(4):
                store.write(str(name), value(float(name)))
            lost += [f"{task}-{key}/{name}" for name in range(4) if not is_kept(store, name)]
    return lost


def is_kept(store: ActivationStore, name: int) -> bool:
    """Whether the value can be read as it was written."""
    found = store.read(str(name), torch.float32)
    return found is not None and torch.equal(found, value(float(name)))


def test_processes_that_share_a_cache_remove_what_others_no_longer_use_and_nothing_else(tmp_path: Path) -> None:
    """96 values are written. Each task may exceed the limit by what was left below it when it measured the cache."""
    with closing(ActivationStore(tmp_path, "in use")) as store:
        store.write("0", value(0.0))
        os.utime(tmp_path / "in use", times=(0, 0))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            lost = list(pool.map(use_keys_in_turn, [tmp_path] * 2, ["one", "two"]))

        assert lost == [[], []]
        assert is_kept(store, 0)
    assert len([path for path in tmp_path.rglob("*") if path.name.isdecimal()]) <= 24


def test_a_store_shares_its_values_with_others_of_its_key(tmp_path: Path) -> None:
    ActivationStore(tmp_path, "key").write("a", value(1.0).bfloat16())
    store = ActivationStore(tmp_path, "key")

    assert torch.equal(store.read("a", torch.bfloat16), value(1.0).bfloat16())  # type: ignore[arg-type]  # it is there
    assert store.read("a", torch.float32) is None
    assert (store.hits, store.misses) == (1, 1)
