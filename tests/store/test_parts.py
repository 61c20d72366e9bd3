"""Uploads in parts, and downloads that go on: over a line that is cut again and again nothing is lost, and little is sent twice.

With a binary of MinIO in `FEDPIPE_MINIO` all of it is tried there as well.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cutting_proxy import cutting_proxy
from s3_servers import CREDENTIALS, Server, running_minio

from fedpipe_operator import names
from fedpipe_operator.store import DirectoryStore, S3Store, parts
from fedpipe_trainer.contract import FailureReason, PartsUpload
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.parts import send_parts
from fedpipe_trainer.transfer import receive, send

MIB = 1 << 20
PART = 5 * MIB
KEY = "export/merged/model.safetensors"
SERVERS = ["moto", *(["minio"] if "FEDPIPE_MINIO" in os.environ else [])]


def no_pause(_seconds: float) -> None:
    """Tests do not wait."""


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_minio(os.environ["FEDPIPE_MINIO"], tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def a_file(folder: Path, size: int) -> Path:
    path = folder / "file"
    path.write_bytes(os.urandom(size))
    return path


@contextmanager
def refusing() -> Iterator[str]:
    """A URL that the store answers as one whose key pair may not do it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/parts"
        server.shutdown()


def store_of(server: Server, name: str, *, trainers: str | None = None) -> S3Store:
    return S3Store("fedpipe", name, endpoint=server.endpoint, trainer_endpoint=trainers, credentials=CREDENTIALS)


def begun(store: S3Store, size: int, *, key: str = KEY) -> PartsUpload:
    upload = store.parts_to_write(key, 600, size, PART)
    assert upload is not None
    return upload


def test_a_file_goes_through_a_line_that_is_cut_and_little_of_it_is_sent_twice(server: Server, tmp_path: Path) -> None:
    path = a_file(tmp_path, 60 * MIB)
    with cutting_proxy(server.endpoint, every=52 * MIB) as line:
        store = store_of(server, tmp_path.name, trainers=line.endpoint)

        artifact = send(path, begun(store, path.stat().st_size), sleep=no_pause)

        assert line.cuts == 1
        assert line.up <= 1.1 * path.stat().st_size
    assert artifact.size == store.size(KEY) == path.stat().st_size
    assert store.read_range(KEY, 51 * MIB, 4 * MIB) == path.read_bytes()[51 * MIB : 55 * MIB]


def test_a_download_through_a_line_that_is_cut_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    path = a_file(tmp_path, 12 * MIB)
    store_of(server, tmp_path.name).write_file("model", path)
    with cutting_proxy(server.endpoint, every=MIB) as line:  # more cuts than there are attempts in a row
        url = store_of(server, tmp_path.name, trainers=line.endpoint).url_to_read("model", 600)

        assert receive(url, tmp_path / "copy", sleep=no_pause) == path.stat().st_size

        assert line.cuts >= 10
        assert line.down <= 1.1 * path.stat().st_size
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def test_what_an_attempt_has_sent_the_next_one_does_not_send_again(server: Server, tmp_path: Path) -> None:
    path, store = a_file(tmp_path, 3 * PART + 7), store_of(server, tmp_path.name)
    first = begun(store, path.stat().st_size)
    for number in (0, 2):
        with path.open("rb") as file:
            file.seek(number * PART)
            assert httpx.put(first.parts[number], content=file.read(PART)).status_code == 200

    second = begun(store, path.stat().st_size)  # as another attempt, or an operator that was restarted, has it

    assert send_parts(path, second, attempts=3, sleep=no_pause) == PART + 7
    assert store.read(KEY) == path.read_bytes()


def test_where_parts_may_not_be_listed_all_of_them_are_sent(server: Server, tmp_path: Path) -> None:
    path, store = a_file(tmp_path, 12 * MIB), store_of(server, tmp_path.name)
    with refusing() as url:
        upload = begun(store, 12 * MIB).model_copy(update={"listing": url})

        assert send_parts(path, upload, attempts=1, sleep=no_pause) == 12 * MIB

    assert store.size(KEY) == 12 * MIB


def test_an_upload_that_is_finished_already_is_not_sent_again(server: Server, tmp_path: Path) -> None:
    path, store = a_file(tmp_path, PART + 1), store_of(server, tmp_path.name)
    upload = begun(store, path.stat().st_size)
    assert send_parts(path, upload, attempts=3, sleep=no_pause) == PART + 1

    assert send_parts(path, upload, attempts=3, sleep=no_pause) == 0  # the pod that replaces one whose result was lost


def test_an_upload_that_was_aborted_fails_with_words(server: Server, tmp_path: Path) -> None:
    path, store = a_file(tmp_path, PART + 1), store_of(server, tmp_path.name)
    upload = begun(store, path.stat().st_size)
    store.write(KEY, b"another model")
    store.abort_uploads(KEY)

    with pytest.raises(TaskFailed, match="the upload in parts was ended by somebody else: start the export again") as failed:
        send_parts(path, upload, attempts=3, sleep=no_pause)

    assert failed.value.reason is FailureReason.TRANSFER_FAILED


def test_aborting_ends_the_uploads_of_one_key_only(server: Server, tmp_path: Path) -> None:
    path, store = a_file(tmp_path, PART + 1), store_of(server, tmp_path.name)
    other, _ = begun(store, PART + 1, key=f"{KEY}.other"), begun(store, PART + 1)

    store.abort_uploads(KEY)
    store.abort_uploads(KEY)  # nothing is left, which is no error

    assert send_parts(path, other, attempts=1, sleep=no_pause) == PART + 1
    assert store.read(KEY) is None


def test_a_key_pair_that_may_not_list_the_uploads_of_a_bucket_goes_on_with_its_own_and_ends_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_open_uploads", lambda *_: [])
    path, store = a_file(tmp_path, PART + 7), store_of(server, tmp_path.name)
    first = begun(store, PART + 7)
    assert httpx.put(first.parts[0], content=path.read_bytes()[:PART]).status_code == 200

    assert send_parts(path, begun(store_of(server, tmp_path.name), PART + 7), attempts=1, sleep=no_pause) == 7
    assert store.read(KEY) == path.read_bytes()

    another = begun(store, PART + 7)  # the first one is finished
    store.abort_uploads(KEY)
    store.abort_uploads(KEY)

    assert httpx.put(another.parts[0], content=b"x").is_error


@pytest.mark.parametrize("written", [b"\xff\xfe", "aé".encode(), b"a\nb", b"x" * 2_000_000])
def test_what_somebody_else_wrote_in_place_of_an_uploads_id_keeps_no_run_from_its_export_or_its_end(
    server: Server, tmp_path: Path, written: bytes
) -> None:
    path, store = a_file(tmp_path, PART + 7), store_of(server, tmp_path.name)
    store.write(names.upload_record(KEY), written)

    store.abort_uploads(KEY)

    assert send_parts(path, begun(store, PART + 7), attempts=1, sleep=no_pause) == PART + 7


def test_a_store_that_names_no_upload_has_none() -> None:
    class Nameless:
        def list_multipart_uploads(self, **_: object) -> dict[str, Any]:
            return {"Uploads": [{"Key": KEY}]}

        def create_multipart_upload(self, **_: object) -> dict[str, Any]:
            return {}

    client: Any = Nameless()

    assert parts.begin_upload(client, "fedpipe", KEY, "") is None
    parts.abort_uploads(client, "fedpipe", KEY, "")


def test_a_smaller_file_than_was_planned_needs_fewer_parts(server: Server, tmp_path: Path) -> None:
    path, store = a_file(tmp_path, 3), store_of(server, tmp_path.name)

    send(path, begun(store, 4 * PART), sleep=no_pause)

    assert store.read(KEY) == path.read_bytes()


def test_a_larger_file_than_was_planned_is_refused(server: Server, tmp_path: Path) -> None:
    path, store = a_file(tmp_path, PART + 1), store_of(server, tmp_path.name)

    with pytest.raises(TaskFailed, match=r"file has 2 parts of 5242880 bytes, and the task has URLs for 1"):
        send(path, begun(store, PART), sleep=no_pause)


@pytest.mark.parametrize("change", [("model.", "other."), ("partNumber=1", "partNumber=9"), ("uploadId=", "uploadId=x")])
@pytest.mark.skipif("FEDPIPE_MINIO" not in os.environ, reason="moto checks no signature")
def test_a_url_of_a_part_writes_no_other_object_part_or_upload(minio: Server, tmp_path: Path, change: tuple[str, str]) -> None:
    upload = begun(store_of(minio, tmp_path.name), PART)

    for url in (upload.parts[0], upload.listing, upload.finish):
        if change[0] in url:
            assert httpx.put(url.replace(*change), content=b"x").status_code == 403


def test_a_directory_has_no_parts(tmp_path: Path) -> None:
    store: Any = DirectoryStore(tmp_path)

    assert store.parts_to_write(KEY, 600, 100, PART) is None
    store.abort_uploads(KEY)
