from pathlib import Path

import pytest

from fedpipe_operator import names
from fedpipe_operator.report import RunRecord, read_record
from fedpipe_operator.store import DirectoryStore
from fedpipe_trainer.contract import Outcome, TrainResult, Wire


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def put(store: DirectoryStore, record: RunRecord) -> None:
    """Write the objects of a run into its store, as the run does."""
    objects: dict[str, Wire] = {names.round_plan(round_): plan for round_, plan in record.plans.items()}
    objects |= {names.round_commit(round_): commit for round_, commit in record.rounds.items()}
    objects |= {names.round_evaluation(round_): evaluation for round_, evaluation in record.evaluations.items()}
    objects |= {names.profile_result(site, 0): profile for site, profile in record.profiles.items()}
    for round_, updates in record.updates.items():
        objects |= {names.update_result(round_, site, 0): update for site, update in updates.items()}
    for round_, results in record.site_evaluations.items():
        objects |= {names.evaluation_result(round_, site, 0): result for site, result in results.items()}
    if record.export is not None:
        objects[names.export_result(0)] = record.export
    if record.comparison is not None:
        objects[names.COMPARISON] = record.comparison
    for key, value in objects.items():
        store.write(key, value.to_json().encode())


def test_a_finished_run_is_read_back_as_it_was(record: RunRecord, store: DirectoryStore) -> None:
    put(store, record)
    assert read_record(record.run, store) == record


def test_a_run_that_was_just_applied_is_an_empty_record(bare_record: RunRecord, store: DirectoryStore) -> None:
    assert read_record(bare_record.run, store) == bare_record


def test_a_round_that_is_not_committed_shows_each_sites_newest_attempt(record: RunRecord, store: DirectoryStore) -> None:
    first = record.updates[1]["clinic-north"].model_copy(update={"outcome": Outcome.FAILED})
    second = first.model_copy(update={"attempt": 2, "outcome": Outcome.COMPLETED})
    store.write(names.round_plan(1), record.plans[1].to_json().encode())
    for update in (first, second):
        store.write(names.update_result(1, update.site, update.attempt), update.to_json().encode())
    found = read_record(record.run, store)
    assert found.updates == {1: {"clinic-north": second}}
    assert found.rounds == {}


def test_a_committed_round_shows_the_aggregated_attempt_not_a_later_one(record: RunRecord, store: DirectoryStore) -> None:
    put(store, record)
    late = record.updates[1]["clinic-north"].model_copy(update={"attempt": 1, "samples": 1})
    store.write(names.update_result(1, "clinic-north", 1), late.to_json().encode())
    assert read_record(record.run, store).updates[1]["clinic-north"].attempt == 0


def test_the_verdict_on_an_update_is_read_with_it(record: RunRecord, store: DirectoryStore) -> None:
    put(store, record)
    verdict = record.rounds[3].refused["practice-south"]
    store.write(names.update_verdict(3, "practice-south", 0), verdict.to_json().encode())
    assert read_record(record.run, store).verdicts == {3: {"practice-south": verdict}}


def test_an_unreadable_object_is_listed_and_the_rest_is_read(record: RunRecord, store: DirectoryStore) -> None:
    put(store, record)
    store.write(names.update_result(2, "clinic-north", 0), b'{"kind": "train", "samples": "many"}')
    found = read_record(record.run, store)
    assert list(found.unreadable) == [names.update_result(2, "clinic-north", 0)]
    assert "TrainResult" in found.unreadable[names.update_result(2, "clinic-north", 0)]
    assert "clinic-north" not in found.updates[2]
    assert isinstance(found.updates[2]["hospital-east"], TrainResult)


def test_files_of_the_export_and_adapters_are_ignored(record: RunRecord, store: DirectoryStore) -> None:
    put(store, record)
    store.write(names.update_adapter(1, "clinic-north", 0), b"\x00")
    store.write(f"{names.EXPORT_ADAPTER}/README.md", b"#")
    store.write(names.checkpoint(2, "clinic-north"), b"\x00")
    assert read_record(record.run, store) == record
