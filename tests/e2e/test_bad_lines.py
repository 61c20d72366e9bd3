"""Large transfers with a real MinIO over a line that is cut every three megabytes: nothing is lost, and at most a tenth is sent twice."""

import os
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from cutting_proxy import CuttingProxy, cutting_proxy
from fleet_namespace import BUCKET, store_at, store_credentials, store_from_here

from fedpipe_operator import names
from fedpipe_operator.reconcile.pieces import update_upload
from fedpipe_operator.store import S3Store
from fedpipe_operator.store.pieces import open_whole_or_pieces
from fedpipe_trainer.contract import PiecesUpload, PostForm
from fedpipe_trainer.transfer import describe, receive, send

pytestmark = pytest.mark.e2e

EVERY = 3_000_000
SIZE = 40_000_000


@pytest.fixture
def line(cluster: None) -> Iterator[CuttingProxy]:
    del cluster
    with cutting_proxy(store_from_here(), every=EVERY) as proxy:
        yield proxy


@pytest.fixture
def folder(cluster: None) -> Iterator[str]:
    del cluster
    folder = f"e2e-lines/{uuid.uuid4()}"
    yield folder
    store_at(folder).delete("")


@pytest.fixture
def through(line: CuttingProxy, folder: str) -> S3Store:
    """The store, as who reaches it over the line."""
    return S3Store(BUCKET, folder, endpoint=line.endpoint, credentials=store_credentials())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


def write(line: CuttingProxy, store: S3Store, key: str, at_most: int) -> PostForm:
    """A form that leads over the line."""
    form = store.form_to_write(key, 600, at_most)
    assert form is not None
    return form.model_copy(update={"url": f"{line.endpoint}/{BUCKET}"})


def test_an_update_arrives(line: CuttingProxy, folder: str, file: Path) -> None:
    key, pieces, near = names.update_adapter(1, "ward-a", 0), names.update_pieces(1, "ward-a", 0), store_at(folder)
    upload = update_upload(partial(write, line, near), key, pieces, at_most=SIZE, updates=10)
    assert isinstance(upload, PiecesUpload)

    sent = send(file, upload, sleep=lambda _seconds: None)

    assert line.cuts >= SIZE // EVERY
    assert line.up <= 1.1 * SIZE
    with open_whole_or_pieces(near, key, pieces, SIZE) as reader:
        assert reader.read(0, reader.size) == file.read_bytes()
    assert sent == describe(file)


def test_a_model_arrives(line: CuttingProxy, folder: str, through: S3Store, file: Path, tmp_path: Path) -> None:
    store_at(folder).write_file("models/model.safetensors", file)
    expected = describe(file).sha256

    received = receive(
        through.url_to_read("models/model.safetensors", 600), tmp_path / "copy", sha256=expected, sleep=lambda _seconds: None
    )

    assert received == SIZE
    assert line.cuts >= SIZE // EVERY
    assert line.down <= 1.1 * SIZE


def test_the_operator_reads_an_adapter(line: CuttingProxy, folder: str, through: S3Store, file: Path) -> None:
    store_at(folder).write_file("adapter", file)

    with through.open_reader("adapter") as reader:
        found = b"".join(reader.read(at, 16 << 20) for at in range(0, SIZE, 16 << 20))

    assert found == file.read_bytes()
    assert line.cuts >= SIZE // EVERY
    assert line.down <= 1.1 * SIZE
