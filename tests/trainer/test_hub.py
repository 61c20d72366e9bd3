"""Models of a hub that is gated, a mirror, or offline: a small server on this machine stands in for the hub."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from exporting import run_dry_export
from hub_stand_in import COMMIT, Hub

from fedpipe_trainer.contract import CausalLM, FailureReason, Model
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import fetch, fetch_headers, fingerprint
from fedpipe_trainer.model.checkpoint import read_header
from fedpipe_trainer.task_runtime import TaskRuntime

Toy = Callable[[str], Path]
TOKEN = "hf_of_the_site"  # noqa: S105 - of a server of this test
MODEL = Model(source="hf://org/toy@main")


@pytest.fixture
def hub(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(toy("llama")) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield served
        served.shutdown()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def refusal(model: Model, runtime: TaskRuntime) -> tuple[FailureReason, str]:
    with pytest.raises(TaskFailed) as failed:
        fetch(model, runtime)
    return failed.value.reason, failed.value.message


def test_a_gated_model_is_refused_without_its_token_in_words_and_downloaded_with_it(
    hub: Hub, runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN

    reason, said = refusal(MODEL, runtime)
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    _, said_of_another = refusal(MODEL, runtime)
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    assert reason is FailureReason.BAD_MODEL
    assert said.startswith("hf://org/toy@main is gated, and this site has no token: accept its terms on the hub")
    assert "its token has no access" in said_of_another
    assert "hf_of" not in said + said_of_another
    assert fingerprint(fetch(MODEL, runtime)) == fingerprint(hub.folder)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://org/missing@main", "the hub has no hf://org/missing@main, or it is private"),
        ("hf://org/toy@nowhere", "the hub has hf://org/toy, but no revision of this name: hf://org/toy@nowhere"),
    ],
)
def test_a_repository_and_a_revision_that_do_not_exist_are_told_apart_and_not_tried_again(
    hub: Hub, runtime: TaskRuntime, source: str, said: str
) -> None:
    reason, message = refusal(Model(source=source), runtime)

    assert reason is FailureReason.BAD_MODEL
    assert message.startswith(said)
    assert not hub.downloads


def test_offline_a_model_that_the_cache_has_is_used_and_any_other_is_told(
    hub: Hub, runtime: TaskRuntime, offline: Callable[[], None]
) -> None:
    before, downloads = fetch(MODEL, runtime), len(hub.downloads)
    offline()

    reason, message = refusal(Model(source="hf://org/other@main"), runtime)

    assert fetch(MODEL, runtime) == before
    assert len(hub.downloads) == downloads
    assert reason is FailureReason.TRANSFER_FAILED
    assert message.startswith("HF_HUB_OFFLINE forbids to ask the hub for hf://org/other@main, which this site's cache does not have")


def test_a_commit_that_the_cache_has_needs_no_question_to_the_hub(hub: Hub, runtime: TaskRuntime, offline: Callable[[], None]) -> None:
    model = Model(source=f"hf://org/toy@{COMMIT}")
    before = fetch(model, runtime)
    hub.is_down = True
    offline()

    assert fetch(model, runtime) == before


def test_of_a_model_on_a_hub_the_headers_alone_are_fetched(hub: Hub, runtime: TaskRuntime) -> None:
    found = fetch_headers(MODEL, runtime)

    weights = hub.folder / "model.safetensors"
    others = sum(path.stat().st_size for path in hub.folder.iterdir() if path != weights)
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    assert hub.bytes_sent == others + header
    assert (found.is_hollow, found.fetched_bytes) == (True, weights.stat().st_size + others)
    assert read_header(found.folder / "model.safetensors") == tuple(
        replace(one, file=found.folder / "model.safetensors") for one in read_header(weights)
    )


def test_an_export_of_a_model_on_a_hub_is_tried_without_its_weights(hub: Hub, tmp_path: Path) -> None:
    objective = CausalLM(prompt="{a}", response="{b}")
    (tmp_path / "local").mkdir()
    expected = run_dry_export(hub.folder, objective, tmp_path / "local")

    found = run_dry_export(hub.folder, objective, tmp_path, model=MODEL)

    sizes = [{one.name: one.size for one in result.merged if one.name != "README.md"} for result in (found, expected)]  # it names the base
    assert sizes[0] == sizes[1]
    assert hub.bytes_sent < sum(one.size for one in found.merged)


def test_the_headers_of_a_gated_model_are_refused_without_its_token_in_words_and_read_with_it(
    hub: Hub, runtime: TaskRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN

    with pytest.raises(TaskFailed, match="is gated, and this site has no token") as failed:
        fetch_headers(MODEL, runtime)
    (runtime.folder / "headers").rmdir()
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    assert failed.value.reason is FailureReason.BAD_MODEL
    assert read_header(fetch_headers(MODEL, runtime).folder / "model.safetensors")


def test_a_pointer_in_place_of_weights_on_a_hub_is_told(hub: Hub, runtime: TaskRuntime, tmp_path: Path) -> None:
    hub.folder = Path(shutil.copytree(hub.folder, tmp_path / "pointers"))
    (hub.folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    with pytest.raises(TaskFailed, match=r"model\.safetensors is no safetensors file: copy it again; a git-lfs pointer") as failed:
        fetch_headers(MODEL, runtime)

    assert failed.value.reason is FailureReason.BAD_MODEL


def test_the_variables_of_a_pod_name_the_mirror_and_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.token = TOKEN
    code = """if True:
        import sys
        from pathlib import Path
        from fedpipe_trainer.contract import Model
        from fedpipe_trainer.model import fetch
        from fedpipe_trainer.task_runtime import TaskRuntime
        folder = Path(sys.argv[1])
        print(fetch(Model(source="hf://org/toy@main"), TaskRuntime(folder, folder, lambda _progress: None, lambda: False)))
    """
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}

    printed = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=True, capture_output=True, text=True).stdout

    assert fingerprint(Path(printed.strip())) == fingerprint(hub.folder)
