"""A base model in a bucket: the URLs for a task, and the errors when the model is missing."""

import hashlib
from pathlib import Path

import httpx
import pytest
from s3_servers import CREDENTIALS, Server

from fedpipe_operator.api import StoreSpec
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store import Credentials, S3Store, model_in_bucket
from fedpipe_trainer.contract import Model
from fedpipe_trainer.model.etag import confirms

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "vocab.txt": b"a"}


def upload(server: Server, folder: str) -> str:
    store = server.store(folder)
    for name, content in FILES.items():
        store.write(name, content)
    return f"s3://{store.bucket}/{folder}"


def model_of(server: Server, source: str, credentials: Credentials = CREDENTIALS) -> Model:
    store = StoreSpec(bucket="fedpipe", endpoint=server.endpoint)
    return model_in_bucket(source, store, seconds=60, credentials=credentials, guard=None)


@pytest.mark.parametrize("server", ["moto", "nanio"])
@pytest.mark.parametrize("ending", ["", "/"])
def test_every_file_of_the_model_gets_a_url_that_needs_no_credentials(server: str, ending: str, request: pytest.FixtureRequest) -> None:
    running = request.getfixturevalue(server)

    model = model_of(running, upload(running, "models/toy") + ending)

    assert {name: httpx.get(url).content for name, url in model.files.items()} == FILES
    assert model.sizes == {name: len(content) for name, content in FILES.items()}
    assert model.etags == {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in FILES.items()}


def test_a_bucket_of_the_same_name_at_another_endpoint_gives_a_site_no_model_that_it_keeps_for_another_run(
    nanio: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site keeps a model by its source and revision, and a run's author may have an endpoint that says what it likes of its objects."""
    source = upload(nanio, "models/toy")
    monkeypatch.setattr(S3Store, "etags_and_sizes", lambda _: {name: ('"0x8DC5A2"', len(content)) for name, content in FILES.items()})
    stores = [StoreSpec(bucket="fedpipe", endpoint=endpoint) for endpoint in (nanio.endpoint, "https://s3.example.org")]

    models = [model_in_bucket(source, store, seconds=60, credentials=CREDENTIALS, guard=None) for store in stores]

    assert models[0].revision != models[1].revision


def test_the_etag_of_a_file_that_was_uploaded_in_parts_is_made_of_their_md5s(moto: Server, tmp_path: Path) -> None:
    source, path = upload(moto, "models/large"), tmp_path / "large"
    path.write_bytes(bytes(17 << 20))
    moto.store("models/large").write_file("model.safetensors", path)

    etag = model_of(moto, source).etags["model.safetensors"]

    assert etag.endswith("-2")
    assert confirms(etag, path)


@pytest.mark.parametrize("etag", ["", "0x8DC5A2", "CJi9nbPZ2YEDEAE=", "0" * 40, f"{'0' * 32}-0"])
def test_an_etag_that_is_no_md5_is_left_out(nanio: Server, monkeypatch: pytest.MonkeyPatch, etag: str) -> None:
    source = upload(nanio, "models/other")
    monkeypatch.setattr(S3Store, "etags_and_sizes", lambda _: {name: (f'"{etag}"', len(content)) for name, content in FILES.items()})

    model = model_of(nanio, source)

    assert (model.etags, set(model.sizes)) == ({}, set(FILES))


def test_files_that_loading_does_not_read_are_ignored(nanio: Server) -> None:
    source = upload(nanio, "models/full")
    for name in ("pytorch_model.bin", "onnx/config.json", "README.md"):
        nanio.store("models/full").write(name, b"not needed")
    nanio.store("models/full-larger").write("config.json", b"another model's")

    assert set(model_of(nanio, source).files) == set(FILES)


@pytest.mark.parametrize("server", ["moto", "nanio"])
def test_the_revision_changes_when_a_file_changes(server: str, request: pytest.FixtureRequest) -> None:
    running = request.getfixturevalue(server)
    source = upload(running, "models/changing")
    before = model_of(running, source).revision
    assert model_of(running, source).revision == before

    running.store("models/changing").write("model.safetensors", b"WEIGHTS")

    assert model_of(running, source).revision != before


def test_the_error_for_a_folder_without_a_model_names_folder_and_bucket(nanio: Server) -> None:
    nanio.store("models/empty").write("model.safetensors", b"weights")

    for folder in ("models/empty", "models/nowhere"):
        failure = error_of(nanio, f"s3://fedpipe/{folder}")

        assert (type(failure), failure.reason) == (UserError, "ModelMissing")
        assert failure.message.startswith(f"spec.model.source s3://fedpipe/{folder}: bucket fedpipe at {nanio.endpoint}")
        assert f"there is no {folder}/config.json" in failure.message


def test_a_bucket_that_the_runs_own_key_pair_does_not_open_is_not_signed_for_and_the_error_names_the_model(nanio: Server) -> None:
    source = upload(nanio, "models/kept")

    failure = error_of(nanio, source, Credentials("operator", "wrong"))

    assert failure.reason == "StoreDenied"
    assert failure.message.startswith(f"spec.model.source {source}: bucket fedpipe at {nanio.endpoint}")
    assert "check the credentials" in failure.message


def test_the_error_for_a_missing_bucket_names_the_model(nanio: Server) -> None:
    failure = error_of(nanio, "s3://no-such-bucket/models/toy")

    assert failure.reason == "BucketMissing"
    assert "spec.model.source s3://no-such-bucket/models/toy" in failure.message


def test_a_bucket_that_is_not_reachable_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    assert isinstance(error_of(Server("http://127.0.0.1:1"), "s3://fedpipe/models/toy"), TransientError)


def error_of(server: Server, source: str, credentials: Credentials = CREDENTIALS) -> FedPipeError:
    with pytest.raises(FedPipeError) as failure:
        model_of(server, source, credentials)
    return failure.value
