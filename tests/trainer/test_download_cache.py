"""Base models that a site downloads once: from URLs, and from a hub, which a small server on this machine stands in for."""

import errno
import fcntl
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_stand_in import COMMIT, OTHER_COMMIT, Hub
from huggingface_hub import HfApi
from safetensors.torch import save_file
from toy_training import at_urls

from fedpipe_trainer.activation_store import ActivationStore
from fedpipe_trainer.contract import FailureReason, Model
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.model import download_cache, fetch, fingerprint, read_revision, source
from fedpipe_trainer.task_runtime import TaskRuntime

Toy = Callable[[str], Path]


@pytest.fixture
def hub(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(toy("llama")) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield served
        served.shutdown()


def test_a_model_of_a_hub_is_downloaded_once(hub: Hub, toy: Toy, runtime: TaskRuntime) -> None:
    first = fetch(Model(source="hf://org/toy@main"), runtime)
    downloads = sorted(hub.downloads)
    again = fetch(Model(source="hf://org/toy@main"), runtime)

    assert first == again
    assert fingerprint(first) == fingerprint(toy("llama"))
    assert downloads == sorted(hub.downloads) == sorted(path.name for path in toy("llama").iterdir())


def test_a_branch_is_resolved_to_a_commit_and_a_moved_one_is_downloaded(hub: Hub, runtime: TaskRuntime) -> None:
    before = fetch(Model(source="hf://org/toy"), runtime)
    hub.commit = OTHER_COMMIT
    after = fetch(Model(source="hf://org/toy"), runtime)

    assert (read_revision(before), read_revision(after)) == (COMMIT, OTHER_COMMIT)
    assert fetch(Model(source=f"hf://org/toy@{COMMIT}"), runtime) == before


def test_the_commit_of_a_task_is_used_wherever_the_branch_has_moved_and_the_hub_is_not_asked(hub: Hub, runtime: TaskRuntime) -> None:
    before = fetch(Model(source="hf://org/toy@main"), runtime)
    hub.commit = OTHER_COMMIT
    moved = fetch(Model(source="hf://org/toy@main", commit=COMMIT), runtime)
    hub.is_down = True
    without_hub = fetch(Model(source="hf://org/toy@main", commit=COMMIT), runtime)

    assert moved == without_hub == before
    assert read_revision(moved) == COMMIT


def test_a_site_that_resolved_another_commit_downloads_that_of_the_task(hub: Hub, runtime: TaskRuntime) -> None:
    own = fetch(Model(source="hf://org/toy"), runtime)
    folder = fetch(Model(source="hf://org/toy", commit=OTHER_COMMIT), runtime)

    assert (read_revision(own), read_revision(folder)) == (COMMIT, OTHER_COMMIT)
    assert len(hub.downloads) == 2 * len(set(hub.downloads))


def test_without_a_hub_the_last_download_is_used(hub: Hub, runtime: TaskRuntime, caplog: pytest.LogCaptureFixture) -> None:
    folder = fetch(Model(source="hf://org/toy@main"), runtime)
    hub.is_down = True

    assert fetch(Model(source="hf://org/toy@main"), runtime) == folder
    assert "the commit of the last download is used" in caplog.text
    with pytest.raises(TaskFailed, match="cannot fetch hf://org/toy@next from the hub") as failed:
        fetch(Model(source="hf://org/toy@next"), runtime)
    assert failed.value.reason is FailureReason.TRANSFER_FAILED


@contextmanager
def no_space() -> Iterator[None]:
    """In this context no file of this process can grow, as on a full volume."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def commit_of_main(runtime: TaskRuntime) -> str:
    return source._commit_of(Model(source="hf://org/toy@main"), "main", HfApi(), runtime)


def test_a_full_volume_keeps_the_commit_that_it_has(hub: Hub, runtime: TaskRuntime) -> None:
    commit_of_main(runtime)
    with no_space():
        assert commit_of_main(runtime) == COMMIT
    hub.is_down = True

    assert commit_of_main(runtime) == COMMIT


@pytest.mark.parametrize("content", [b"", COMMIT[:-1].encode(), f"{COMMIT}\n".encode(), b"\xff"])
def test_a_damaged_commit_is_not_used(hub: Hub, runtime: TaskRuntime, content: bytes) -> None:
    commit_of_main(runtime)
    next((runtime.cache / "models").glob("*.commit")).write_bytes(content)
    hub.is_down = True

    with pytest.raises(TaskFailed, match="cannot fetch hf://org/toy@main from the hub"):
        commit_of_main(runtime)


def test_a_hub_that_cannot_be_reached_is_a_failed_transfer(hub: Hub, runtime: TaskRuntime) -> None:
    hub.shutdown()
    hub.server_close()

    with pytest.raises(TaskFailed, match="cannot fetch hf://org/toy from the hub") as failed:
        fetch(Model(source="hf://org/toy"), runtime)

    assert failed.value.reason is FailureReason.TRANSFER_FAILED


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_with_another_hash_than_the_hub_announces_is_refused(hub: Hub, runtime: TaskRuntime, name: str) -> None:
    content = (hub.folder / name).read_bytes()
    hub.announced[name] = content[:-1] + bytes([content[-1] ^ 1])

    with pytest.raises(TaskFailed, match=f"{name} of hf://org/toy arrived with other content"):
        fetch(Model(source="hf://org/toy"), runtime)

    hub.announced.clear()
    assert fingerprint(fetch(Model(source="hf://org/toy"), runtime)) == fingerprint(hub.folder)


def test_a_file_of_a_bucket_with_another_size_than_the_bucket_lists_is_refused_and_downloaded_again(toy: Toy, runtime: TaskRuntime) -> None:
    sizes = {path.name: path.stat().st_size for path in toy("llama").iterdir()}
    right = at_urls(toy("llama")).model_copy(update={"sizes": sizes})
    cut = right.model_copy(update={"sizes": sizes | {"tokenizer.json": sizes["tokenizer.json"] + 1}})

    with pytest.raises(TaskFailed, match=r"tokenizer\.json of s3://bucket/toy arrived with other content") as failed:
        fetch(cut, runtime)

    assert failed.value.reason is FailureReason.TRANSFER_FAILED
    assert fingerprint(fetch(right, runtime)) == fingerprint(toy("llama"))


def test_a_download_that_was_interrupted_is_continued(toy: Toy, runtime: TaskRuntime) -> None:
    whole = at_urls(toy("llama"))
    missing = whole.model_copy(update={"files": whole.files | {"tokenizer.json": "file:///nowhere/tokenizer.json"}})
    with pytest.raises(TaskFailed, match="does not exist"):
        fetch(missing, runtime)
    before = runtime.measured().downloaded_bytes

    folder = fetch(whole, runtime)

    sizes = {path.name: path.stat().st_size for path in toy("llama").iterdir()}
    assert before > 0
    assert runtime.measured().downloaded_bytes == sum(sizes.values()), "no file was downloaded twice"
    assert fingerprint(folder) == fingerprint(toy("llama"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:-1] + b"?", None])
def test_a_model_that_was_damaged_is_downloaded_again(toy: Toy, runtime: TaskRuntime, name: str, damage: Any) -> None:
    path = fetch(at_urls(toy("llama")), runtime) / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))

    folder = fetch(at_urls(toy("llama")), runtime)

    assert (folder / name).read_bytes() == (toy("llama") / name).read_bytes()


def test_concurrent_tasks_download_a_model_once(hub: Hub, runtime: TaskRuntime) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: fetch(Model(source="hf://org/toy"), runtime), range(4)))

    assert len(set(folders)) == 1
    assert len(hub.downloads) == len(set(hub.downloads))


def test_a_task_that_is_to_stop_does_not_wait_for_the_download_of_another(
    toy: Toy, runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python runs signal handlers, but a lock that blocks waits on after them."""
    model, waits = at_urls(toy("llama"), "a"), list[float]()
    folder = fetch(model, runtime)
    monkeypatch.setattr(download_cache.time, "sleep", waits.append)
    runtime.stop_requested = lambda: len(waits) == 3  # type: ignore[method-assign]

    with folder.with_name(f"{folder.name}.fetch").open("ab") as lock:  # as another process would hold it
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Terminated):
            fetch(model, runtime)

    assert sum(waits) <= 3.0, "seconds until it notices"


def test_models_that_were_not_used_for_a_month_are_removed_but_none_that_is_in_use(toy: Toy, runtime: TaskRuntime) -> None:
    old, used, recent = (fetch(at_urls(toy("llama"), revision), runtime) for revision in "abc")
    for folder in (old, used):
        os.utime(folder, times=(0, 0))

    with used.with_name(f"{used.name}.use").open("ab") as lock:  # as another process would hold it
        fcntl.flock(lock, fcntl.LOCK_SH)
        fetch(at_urls(toy("llama"), "d"), runtime)

    assert not old.exists()
    assert used.exists()
    assert recent.exists()


def test_a_task_that_uses_a_model_while_another_removes_it_has_all_its_files(
    toy: Toy, runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fetch(at_urls(toy("llama"), "a"), runtime)
    os.utime(old, times=(0, 0))
    fetch(at_urls(toy("llama"), "b"), runtime)  # so that this process does not use it any more
    rename, rmtree = Path.rename, shutil.rmtree
    refused, used = list[str](), list[Path]()

    def locked_rename(path: Path, to: Path) -> Path:
        for suffix in ("fetch", "use") if path == old else ():
            with old.with_name(f"{old.name}.{suffix}").open("ab") as lock, suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                refused.remove(suffix)
            refused.append(suffix)
        return rename(path, to)

    def remove_after_another_task_has_come(path: Path, **options: Any) -> None:
        if path.name.startswith(old.name) and path.exists() and not used:
            used.append(old)
            used[0] = fetch(at_urls(toy("llama"), "a"), runtime)
        rmtree(path, **options)

    monkeypatch.setattr(Path, "rename", locked_rename)
    monkeypatch.setattr(shutil, "rmtree", remove_after_another_task_has_come)
    fetch(at_urls(toy("llama"), "c"), runtime)

    assert refused == ["fetch", "use"], "both locks are held while the folder is renamed"
    assert sorted(path.name for path in used[0].iterdir() if path.name != "fedpipe-manifest") == sorted(
        path.name for path in toy("llama").iterdir()
    )
    assert not list(old.parent.glob("*.removed"))


def test_what_a_killed_task_was_removing_is_removed(toy: Toy, runtime: TaskRuntime) -> None:
    left = runtime.cache / "models" / "0123.removed"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")

    fetch(at_urls(toy("llama")), runtime)

    assert not left.exists()


def test_on_a_full_volume_unused_models_make_room(full_disk: Path, toy: Toy, runtime: TaskRuntime) -> None:
    runtime.cache = full_disk
    an_old_model(full_disk, size=40_000)

    folder = fetch(a_small_model(toy("llama"), runtime.folder), runtime)

    assert folder.is_relative_to(full_disk)
    assert not (full_disk / "models" / "old").exists()


def test_on_a_full_volume_activations_that_no_task_uses_make_room_before_models_do(full_disk: Path, toy: Toy, runtime: TaskRuntime) -> None:
    runtime.cache = full_disk
    an_old_model(full_disk, size=4_000)
    for key in ("stale", "in use"):
        with closing(ActivationStore(full_disk / "activations", key, limit=60_000)) as store:
            store.write("a", torch.ones(1_000 if key == "in use" else 7_000))

    with closing(ActivationStore(full_disk / "activations", "in use")):
        folder = fetch(a_small_model(toy("llama"), runtime.folder), runtime)

    assert folder.is_relative_to(full_disk)
    assert [path.name for path in (full_disk / "activations").iterdir() if path.is_dir()] == ["in use"]
    assert (full_disk / "models" / "old").exists()


def an_old_model(cache: Path, *, size: int) -> None:
    """A model that no process uses."""
    (cache / "models" / "old").mkdir(parents=True)
    (cache / "models" / "old" / "model.safetensors").write_bytes(bytes(size))


def a_small_model(toy: Path, folder: Path) -> Model:
    small = {path.name: path.as_uri() for path in toy.iterdir() if path.stat().st_size < 40_000}
    return Model(source="s3://bucket/toy", files=small | _a_small_checkpoint(folder), revision="a" * 64)


def _a_small_checkpoint(folder: Path) -> dict[str, str]:
    path = folder / "model.safetensors"
    save_file({"weight": torch.zeros(5_000)}, path)
    return {path.name: path.as_uri()}


def test_where_the_cache_is_too_small_the_scratch_folder_is_used(
    full_disk: Path, toy: Toy, runtime: TaskRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.cache = full_disk

    folder = fetch(at_urls(toy("llama")), runtime)

    assert folder == runtime.folder / "model"
    assert fingerprint(folder) == fingerprint(toy("llama"))
    assert "(No space left on device): every task downloads it; free space (or inodes) on the site's cache volume" in caplog.text


def test_where_the_volume_fails_while_a_hub_is_asked_the_scratch_folder_is_used(
    hub: Hub, runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    download = HfApi.hf_hub_download

    def broken(api: HfApi, *args: Any, local_dir: Path, **options: Any) -> Any:
        if local_dir.is_relative_to(runtime.cache):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(local_dir))
        return download(api, *args, local_dir=local_dir, **options)

    monkeypatch.setattr(HfApi, "hf_hub_download", broken)

    folder = fetch(Model(source="hf://org/toy"), runtime)

    assert folder == runtime.folder / "model"
    assert fingerprint(folder) == fingerprint(hub.folder)
    assert "(Input/output error): every task downloads it; check the site's cache volume" in caplog.text


def test_an_error_of_the_hub_is_none_of_the_volume(hub: Hub, runtime: TaskRuntime, caplog: pytest.LogCaptureFixture) -> None:
    hub.is_down = True

    with pytest.raises(TaskFailed, match="cannot fetch hf://org/toy from the hub"):
        fetch(Model(source="hf://org/toy", commit=COMMIT), runtime)

    assert "cannot be kept" not in caplog.text
