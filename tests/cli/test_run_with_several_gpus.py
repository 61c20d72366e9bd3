"""`fedpipe run` with a site whose pods would have two GPUs: on a machine without any, two processes on its CPU take their place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_runs import SEEN, Fleet, a_fleet

from fedpipe_trainer.contract import Outcome, ProfileResult, ProfileTask, TrainResult, TrainTask, parse_result, parse_task


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Three sites, of which north has two GPUs."""
    made = a_fleet(tmp_path)
    documents = list(yaml.safe_load_all((tmp_path / "run.yaml").read_text()))
    for document in documents:
        if document["metadata"]["name"] == "north":
            document["spec"]["capacity"]["accelerator"] = {"count": 2, "memory": "2Gi"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump_all(documents))
    return made


@pytest.mark.slow
def test_a_site_of_two_gpus_is_profiled_and_trains_with_two_processes(fleet: Fleet) -> None:
    fleet.run(env={"CUDA_VISIBLE_DEVICES": ""})

    tasks = documents_in(fleet.folder / "runs", "task.json", parse_task)
    divided = {(one.kind, one.site): one.processes for one in tasks if isinstance(one, ProfileTask | TrainTask)}
    assert divided == {(kind, site): 2 if site == "north" else 1 for kind in ("profile", "train") for site in SEEN}
    results = documents_in(fleet.store, "*.json", parse_result)
    assert {one.site: one.processes for one in results if isinstance(one, ProfileResult)} == {"north": 2, "south": 1, "west": 1}
    updates = [one for one in results if isinstance(one, TrainResult) and one.site == "north"]
    assert len(updates) >= 2
    assert all(one.outcome is Outcome.COMPLETED and one.samples == 4 * one.steps for one in updates)
    assert len(fleet.adapters()) == 2


def documents_in(folder: Path, name: str, parse: Callable[[str], Any]) -> list[Any]:
    """The documents of profiles and trainings that files of this name have."""
    texts = [path.read_text() for path in folder.rglob(name)]
    return [parse(text) for text in texts if json.loads(text).get("kind") in ("profile", "train")]
