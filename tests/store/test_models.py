"""A base model in a bucket: what a task is given of it, and what a person is told when it is not there."""

import boto3
import httpx
import pytest
from s3_servers import CREDENTIALS, Server

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store import Credentials, model_in_bucket
from fedpipe_trainer.contract import Model

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "vocab.txt": b"a"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    authorise(monkeypatch, CREDENTIALS)


def authorise(monkeypatch: pytest.MonkeyPatch, credentials: Credentials) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials.secret_key)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials it found first


def uploaded(server: Server, folder: str) -> str:
    store = server.store(folder)
    for name, content in FILES.items():
        store.write(name, content)
    return f"s3://{store.bucket}/{folder}"


def found(server: Server, source: str) -> Model:
    return model_in_bucket(source, endpoint=server.endpoint, region="us-east-1", seconds=60)


@pytest.mark.parametrize("server", ["moto", "nanio"])
@pytest.mark.parametrize("ending", ["", "/"])
def test_every_file_of_the_model_comes_as_a_url_that_needs_no_key(server: str, ending: str, request: pytest.FixtureRequest) -> None:
    running = request.getfixturevalue(server)

    model = found(running, uploaded(running, "models/toy") + ending)

    assert {name: httpx.get(url).content for name, url in model.files.items()} == FILES


def test_what_loading_does_not_read_is_left_where_it_is(nanio: Server) -> None:
    source = uploaded(nanio, "models/full")
    for name in ("pytorch_model.bin", "onnx/config.json", "README.md"):
        nanio.store("models/full").write(name, b"not needed")
    nanio.store("models/full-larger").write("config.json", b"another model's")

    assert set(found(nanio, source).files) == set(FILES)


@pytest.mark.parametrize("server", ["moto", "nanio"])
def test_the_revision_follows_the_files(server: str, request: pytest.FixtureRequest) -> None:
    running = request.getfixturevalue(server)
    source = uploaded(running, "models/changing")
    before = found(running, source).revision
    assert found(running, source).revision == before

    running.store("models/changing").write("model.safetensors", b"WEIGHTS")

    assert found(running, source).revision != before


def test_a_folder_without_a_model_is_named_with_its_bucket(nanio: Server) -> None:
    nanio.store("models/empty").write("model.safetensors", b"weights")

    for folder in ("models/empty", "models/nowhere"):
        failure = failing(nanio, f"s3://fedpipe/{folder}")

        assert (type(failure), failure.reason) == (UserError, "ModelMissing")
        assert failure.message.startswith(f"spec.model.source s3://fedpipe/{folder}: bucket fedpipe at {nanio.endpoint}")
        assert f"there is no {folder}/config.json" in failure.message


def test_wrong_credentials_are_told_with_the_model_they_were_for(nanio: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = uploaded(nanio, "models/kept")
    authorise(monkeypatch, Credentials("operator", "wrong"))

    failure = failing(nanio, source)

    assert failure.reason == "StoreDenied"
    assert failure.message.startswith(f"spec.model.source {source}: bucket fedpipe at {nanio.endpoint}")
    assert "check the credentials" in failure.message


def test_a_missing_bucket_is_told_with_the_model_it_was_for(nanio: Server) -> None:
    failure = failing(nanio, "s3://no-such-bucket/models/toy")

    assert failure.reason == "BucketMissing"
    assert "spec.model.source s3://no-such-bucket/models/toy" in failure.message


def test_a_bucket_out_of_reach_may_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    assert isinstance(failing(Server("http://127.0.0.1:1"), "s3://fedpipe/models/toy"), TransientError)


def failing(server: Server, source: str) -> FedPipeError:
    with pytest.raises(FedPipeError) as failure:
        found(server, source)
    return failure.value
