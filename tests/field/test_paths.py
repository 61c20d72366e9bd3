"""Folders of any name: a path becomes a URL by the rules of URLs, and a URL of a model may be written as a path."""

from pathlib import Path
from typing import Any

import pytest
from toys import make_toy

from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests.model_folders import require_folder_of_the_image
from fedpipe_operator.store.directory import DirectoryStore
from fedpipe_trainer.contract import Model
from fedpipe_trainer.model import fetch
from fedpipe_trainer.task_runtime import TaskRuntime

NAMES = ["feature%2Flogin", "100%", "a#b", "a?b=c", "a b", "für", "%23", "a%b#c?d%25"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    make_toy("bert", folder)
    return folder


def runtime(folder: Path) -> TaskRuntime:
    return TaskRuntime(folder=folder, cache=folder / "cache", write_progress=lambda _: None, stop_requested=lambda: False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", [lambda folder: folder.as_uri(), lambda folder: f"file://{folder}"], ids=["a URL", "a path"])
def test_a_model_is_found_in_a_folder_of_any_name(tmp_path: Path, model: Path, name: str, source: Any) -> None:
    folder = tmp_path / name / "model"
    folder.parent.mkdir()
    folder.symlink_to(model)

    assert fetch(Model(source=source(folder)), runtime(tmp_path)) == folder


@pytest.mark.parametrize("name", NAMES)
def test_a_store_in_a_folder_of_any_name_is_written_and_read(tmp_path: Path, name: str) -> None:
    store, work = DirectoryStore(tmp_path / name), tmp_path / "work"
    work.mkdir()
    (work / "a.json").write_text("{}")
    trainer = runtime(work)
    trainer.upload(work / "a.json", store.url_to_write("rounds/a.json", 60))

    assert store.read("rounds/a.json") == b"{}"
    assert trainer.download_if_exists(store.url_to_read("rounds/a.json", 60), work / "b.json")


@pytest.mark.parametrize(
    "source", ["file:///data#x", "file:///data%2F", "file:///d%61ta", "file:///data/a%b", "file:////data?", "file:///%2E/task"]
)
def test_no_spelling_of_a_path_leads_to_what_a_pod_mounts(source: str) -> None:
    with pytest.raises(UserError):
        require_folder_of_the_image(source)
