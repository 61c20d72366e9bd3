"""Aggregation as a separate process: a task file in, an exit status and one line on stderr out."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import World, a_run
from trainer_results import path_of

from fedpipe_operator import names, worker
from fedpipe_operator.aggregation.worker import AggregationTask, aggregate
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.rounds.records import RoundCommit, UpdateRef, Verdict
from fedpipe_operator.store import DirectoryStore
from fedpipe_operator.store.address import BucketAddress, DirectoryAddress
from fedpipe_trainer.contract import ExitCode, TrainTask

Change = Callable[[DirectoryStore], None]


def global_adapter(store: DirectoryStore) -> str:
    """The key of the adapter that the second round starts from."""
    return RoundCommit.model_validate_json(store.read(names.round_commit(1)) or b"").adapter.name


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A run whose second round is ready to be aggregated."""
    world = World(a_run(), tmp_path)
    world.work_until("aggregate-r2")
    return world


def task_file(world: World, **changes: object) -> Path:
    task = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"])
    file = world.folder / "task.json"
    file.write_text(task.model_copy(update=changes).to_json())
    return file


def exit_status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        worker.main(list(arguments))
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def commit_of(world: World) -> RoundCommit:
    return RoundCommit.model_validate_json(world.store.read(names.round_commit(2)) or b"")


def test_adapters_from_a_bucket_are_copied_in_chunks_and_give_the_same_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe_operator.aggregation.worker._COPY_CHUNK", 100)
    task = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"])
    opened: list[str] = []

    class RecordingStore(DirectoryStore):
        def open_reader(self, key: str) -> Any:
            opened.append(key)
            return super().open_reader(key)

    aggregate(task.model_copy(update={"store": BucketAddress(bucket="b", prefix="p")}), RecordingStore(world.store.root))
    hash_from_copies = commit_of(world).adapter.sha256
    world.store.delete(names.round_commit(2))
    aggregate(task, world.store)

    assert hash_from_copies == commit_of(world).adapter.sha256
    assert len(opened) == 4


@pytest.mark.parametrize("copied", [True, False], ids=["bucket", "folder"])
def test_an_adapter_in_pieces_gives_the_same_bytes(world: World, copied: bool) -> None:
    task = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"])
    aggregate(task, world.store)
    expected = commit_of(world).adapter.sha256
    world.store.delete(names.round_commit(2))
    key, pieces = names.update_adapter(2, "site-b", 0), names.update_pieces(2, "site-b", 0)
    content = world.store.read(key) or b""
    world.store.delete(key)
    for number, start in enumerate(range(0, len(content), 300)):
        world.store.write(names.piece(pieces, number), content[start : start + 300])

    aggregate(task.model_copy(update={"store": BucketAddress(bucket="b", prefix="p")} if copied else {}), world.store)

    assert commit_of(world).adapter.sha256 == expected
    assert commit_of(world).refused == {}


def test_pieces_of_an_earlier_pod_behind_the_adapter_are_no_part_of_it(tmp_path: Path) -> None:
    world = a_world_that_needs_two_updates(tmp_path)
    key, pieces = names.update_adapter(2, "site-b", 0), names.update_pieces(2, "site-b", 0)
    content = world.store.read(key) or b""
    world.store.delete(key)
    for number, piece in enumerate((content[:300], content[300:], b"of an earlier pod", b"")):
        world.store.write(names.piece(pieces, number), piece)

    aggregate(AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"]), world.store)

    assert commit_of(world).refused == {}


def test_an_adapter_that_lacks_a_piece_costs_its_site_alone(tmp_path: Path) -> None:
    world = a_world_that_needs_two_updates(tmp_path)
    key, pieces = names.update_adapter(2, "site-b", 0), names.update_pieces(2, "site-b", 0)
    content = world.store.read(key) or b""
    world.store.delete(key)
    for number in (0, 2):
        world.store.write(names.piece(pieces, number), content[100 * number : 100 * number + 100])

    aggregate(AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"]), world.store)

    assert {site: verdict.reason for site, verdict in commit_of(world).refused.items()} == {"site-b": "HashMismatch"}


def test_the_rule_and_the_bounds_of_the_spec_reach_the_aggregation(tmp_path: Path) -> None:
    bounds = {"maxSiteWeight": 0.4, "clipping": "Refuse", "clipMultiple": 7, "maliciousSites": 2}
    world = World(a_run(aggregation={"rule": "Median", **bounds}), tmp_path)
    world.work_until("aggregate-r2")

    task = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"])
    aggregate(task, world.store)

    assert (task.rule, task.max_site_weight, task.clipping, task.clip_multiple, task.malicious_sites) == ("Median", 0.4, "Refuse", 7, 2)
    assert commit_of(world).rule == "Median"
    assert max(one.share for one in commit_of(world).contributions) <= 0.4 + 1e-12


def test_too_few_updates_for_the_rule_fail_the_aggregation_with_a_sentence(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(str(task_file(world, rule="Krum"))) != 0

    assert "aggregation.rule Krum with maliciousSites 1 needs 5 updates" in capsys.readouterr().err


def test_a_process_aggregates_the_round_of_its_task_file(world: World) -> None:
    command = [sys.executable, "-m", "fedpipe_operator.worker", str(task_file(world))]

    process = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    commit = commit_of(world)
    assert [contribution.site for contribution in commit.contributions] == ["site-a", "site-b", "site-c"]
    assert world.store.size(commit.adapter.name) == commit.adapter.size
    assert commit.adapter.sha256[:16] in commit.adapter.name
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_committed_round_is_not_aggregated_again(world: World) -> None:
    worker.main([str(task_file(world))])
    commit = commit_of(world)
    world.store.delete(commit.adapter.name)

    worker.main([str(task_file(world))])

    assert commit_of(world) == commit
    assert world.store.size(commit.adapter.name) is None


def test_with_too_few_accepted_updates_verdicts_are_written_but_no_commit(world: World) -> None:
    for site in ("site-a", "site-b", "site-c"):
        world.store.write(names.update_adapter(2, site, 0), b"not the bytes that the result states")

    worker.main([str(task_file(world))])

    assert world.store.read(names.round_commit(2)) is None
    assert b"Mismatch" in (world.store.read(names.update_verdict(2, "site-b", 0)) or b"")
    assert not world.store.list("rounds/0002/global")


def test_an_update_is_checked_against_its_own_attempt(world: World) -> None:
    task = TrainTask.model_validate_json(world.backend.tasks["toy-train-r2-site-a-a0"])
    for key in (names.update_adapter(2, "site-a", 0), names.update_result(2, "site-a", 0)):
        data = world.store.read(key)
        assert data is not None
        world.store.write(key.replace("/0/", "/3/"), data)
        world.store.delete(key)
    assert not path_of(task.result).exists()
    result = names.update_result(2, "site-a", 3)
    world.store.write(result, (world.store.read(result) or b"").replace(b'"attempt": 0', b'"attempt": 3'))
    updates = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"]).updates
    moved = tuple(UpdateRef(site="site-a", attempt=3) if update.site == "site-a" else update for update in updates)

    worker.main([str(task_file(world, updates=moved))])

    assert {contribution.site: contribution.attempt for contribution in commit_of(world).contributions} == {
        "site-a": 3,
        "site-b": 0,
        "site-c": 0,
    }
    assert world.store.read(names.update_verdict(2, "site-a", 3)) is not None
    assert world.store.read(names.update_verdict(2, "site-a", 0)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda store: store.delete(names.round_plan(2)), f"ObjectMissing: {names.round_plan(2)} is not in the store"),
        (lambda store: store.delete(global_adapter(store)), "ObjectMissing: rounds/0001/global/adapter-"),
        (lambda store: store.write(global_adapter(store), bytes(100)), "ObjectUnreadable: rounds/0001/global/adapter-"),
    ],
)
def test_a_missing_or_unreadable_object_is_a_bad_task_and_the_message_has_its_key(
    world: World, capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    change(world.store)

    assert exit_status(str(task_file(world))) == ExitCode.BAD_TASK
    assert capsys.readouterr().err.startswith(message)
    assert world.store.read(names.round_commit(2)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda store: store.delete(names.update_adapter(2, "site-b", 0)), "NoAdapter"),
        (lambda store: store.delete(names.update_result(2, "site-b", 0)), "Overwritten"),
        (lambda store: store.write(names.update_result(2, "site-b", 0), b'{"schemaVersion": 2}'), "Unreadable"),
        (lambda store: store.write(names.update_result(2, "site-b", 0), store.read(names.profile_result("site-b", 0))), "Unreadable"),
        (lambda store: store.write(names.update_result(2, "site-b", 0), _with_more_tokens(store)), "Overwritten"),
        (lambda store: store.write(names.update_adapter(2, "site-b", 0), bytes(10_000_000)), "TooLarge"),
    ],
)
def test_what_a_site_changes_after_it_was_seen_costs_that_site_the_round_and_nothing_else(
    tmp_path: Path, change: Change, reason: str
) -> None:
    world = a_world_that_needs_two_updates(tmp_path)
    change(world.store)

    worker.main([str(task_file(world))])

    commit = commit_of(world)
    assert [contribution.site for contribution in commit.contributions] == ["site-a", "site-c"]
    assert {site: verdict.reason for site, verdict in commit.refused.items()} == {"site-b": reason}


class BucketWithOneFault(DirectoryStore):
    """A bucket, of which site-b's adapter is opened by `fault`."""

    def __init__(self, root: Path, fault: Callable[[], Any]) -> None:
        super().__init__(root)
        self.fault = fault

    def open_reader(self, key: str) -> Any:
        return nullcontext(self.fault()) if key == names.update_adapter(2, "site-b", 0) else super().open_reader(key)


def aggregate_with(world: World, fault: Callable[[], Any]) -> dict[str, str]:
    """Why updates were refused in a round whose updates are in such a bucket."""
    task = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"])
    aggregate(task.model_copy(update={"store": BucketAddress(bucket="b", prefix="p")}), BucketWithOneFault(world.store.root, fault))
    return {site: verdict.reason for site, verdict in commit_of(world).refused.items()}


@dataclass
class Gigabytes:
    """An object of a bucket, of which each read is noted."""

    reads: list[str]
    size: int = 5 * 2**30

    def read(self, offset: int, length: int) -> bytes:
        self.reads.append(f"{length} at {offset}")
        return b""


def test_an_object_of_gigabytes_is_refused_before_any_of_it_is_copied_to_the_disk(tmp_path: Path) -> None:
    read = list[str]()

    assert aggregate_with(a_world_that_needs_two_updates(tmp_path), lambda: Gigabytes(read)) == {"site-b": "TooLarge"}
    assert read == []


@pytest.mark.parametrize(
    "error",
    [TransientError("ObjectChanged", "replaced"), UserError("ObjectTooShort", "by less"), UserError("ObjectMissing", "or deleted")],
    ids=lambda error: error.reason,
)
def test_an_adapter_that_is_replaced_while_it_is_copied_costs_its_site_alone(tmp_path: Path, error: FedPipeError) -> None:
    world = a_world_that_needs_two_updates(tmp_path)

    class Changing:
        size = world.store.size(names.update_adapter(2, "site-b", 0))

        def read(self, _offset: int, _length: int) -> bytes:
            raise error

    assert aggregate_with(world, Changing) == {"site-b": "Overwritten"}


def test_an_adapter_that_is_not_as_long_as_its_result_says_is_not_copied_to_the_disk(tmp_path: Path) -> None:
    """By what results state, it is decided whether the operator's own pod has the disk for a round."""
    read = list[int]()

    class Longer:
        size = 100

        def read(self, offset: int, _length: int) -> bytes:
            read.append(offset)
            return bytes(100)

    assert aggregate_with(a_world_that_needs_two_updates(tmp_path), Longer) == {"site-b": "HashMismatch"}
    assert read == []


def test_of_a_global_adapter_that_somebody_replaced_nothing_is_copied_to_the_disk(world: World) -> None:
    """Whoever has the key pair of the bucket can write there an object of any size, which the operator's own pod would have copied."""
    read = list[str]()

    class Replaced(DirectoryStore):
        def open_reader(self, key: str) -> Any:
            return nullcontext(Gigabytes(read)) if key == global_adapter(self) else super().open_reader(key)

    task = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"])
    with pytest.raises(UserError, match="was overwritten: it has 5368709120 bytes instead of"):
        aggregate(task.model_copy(update={"store": BucketAddress(bucket="b", prefix="p")}), Replaced(world.store.root))

    assert read == []


def test_a_global_adapter_of_the_same_length_and_other_bytes_is_told_from_it(world: World) -> None:
    adapter = global_adapter(world.store)
    world.store.write(adapter, bytes(world.store.size(adapter) or 0))

    with pytest.raises(UserError, match=f"{adapter} was overwritten: it has another SHA-256"):
        aggregate(AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"]), world.store)


def test_a_plan_that_was_changed_after_the_sites_had_trained_by_it_is_not_aggregated_by(tmp_path: Path) -> None:
    """It has what the sites were promised: with how many others their updates are mixed."""
    world = a_world_that_needs_two_updates(tmp_path)
    plan = names.round_plan(2)
    world.store.write(plan, (world.store.read(plan) or b"").replace(b'"needed": 2', b'"needed": 1'))

    with pytest.raises(UserError, match=f"{plan} was overwritten: it is another one than when its trainings were started"):
        aggregate(AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"]), world.store)


def test_a_store_that_fails_while_an_adapter_is_copied_is_no_sites_refusal(tmp_path: Path) -> None:
    def unreachable() -> Any:
        raise TransientError("StoreUnreachable", "no connection")

    with pytest.raises(TransientError, match="StoreUnreachable"):
        aggregate_with(a_world_that_needs_two_updates(tmp_path), unreachable)


def test_what_was_refused_at_first_sight_is_in_the_commit(tmp_path: Path) -> None:
    world = a_world_that_needs_two_updates(tmp_path)
    updates = AggregationTask.model_validate_json(world.backend.tasks["toy-aggregate-r2-a0"]).updates
    refused = Verdict(accepted=False, reason="WrongSteps", message="too many")

    worker.main([str(task_file(world, updates=updates[:2], refused={"site-c": refused}))])

    assert commit_of(world).refused == {"site-c": refused}


def a_world_that_needs_two_updates(folder: Path) -> World:
    world = World(a_run(sites={"quorum": 0.6}), folder)
    world.work_until("aggregate-r2")
    return world


def _with_more_tokens(store: DirectoryStore) -> bytes:
    return (store.read(names.update_result(2, "site-b", 0)) or b"").replace(b'"tokens": 120', b'"tokens": 121')


@pytest.mark.parametrize("text", ["", "{}", '{"kind": "train"}'])
def test_an_invalid_task_file_is_a_bad_task(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "task.json").write_text(text)

    assert exit_status(str(tmp_path / "task.json")) == ExitCode.BAD_TASK
    assert "AggregationTask" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["one.json", "two.json"]])
def test_anything_but_one_task_file_prints_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert exit_status(*arguments) == ExitCode.BAD_TASK
    assert capsys.readouterr().err.startswith("usage: ")


def test_a_store_that_is_a_file_is_a_bad_task(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    (world.folder / "file").write_text("")

    assert exit_status(str(task_file(world, store=DirectoryAddress(root=str(world.folder / "file"))))) == ExitCode.BAD_TASK
    assert str(world.folder / "file") in capsys.readouterr().err
