"""Updates in pieces: over a line that is cut every few megabytes nothing is lost, little is sent twice, and no site sends too much.

`tests/e2e/test_bad_lines.py` tries the same on a real MinIO.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from cutting_proxy import cutting_proxy
from form_server import SECRET, FormServer, form_server
from hypothesis import given
from hypothesis import strategies as st
from s3_servers import CREDENTIALS, Server

from fedpipe_operator import names
from fedpipe_operator.errors import UserError
from fedpipe_operator.reconcile.pieces import PIECES_FROM_BYTES, piece_bytes, update_upload
from fedpipe_operator.store import Credentials, DirectoryStore, S3Store
from fedpipe_operator.store.pieces import PiecesReader, open_whole_or_pieces
from fedpipe_trainer.contract import FailureReason, PiecesUpload, PostForm
from fedpipe_trainer.contract.task import LEAST_PIECE_BYTES, MAX_PIECES
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.transfer import send

MIB = 1 << 20
KEY, FOLDER = names.update_adapter(2, "ward-a", 0), names.update_pieces(2, "ward-a", 0)


def no_pause(_seconds: float) -> None:
    """Tests do not wait."""


@pytest.fixture
def server() -> Iterator[FormServer]:
    with form_server() as running:
        yield running


def a_file(folder: Path, size: int) -> Path:
    path = folder / "adapter.safetensors"
    path.write_bytes(os.urandom(size))
    return path


def forms_of(endpoint: str, key: str, at_most: int) -> PostForm | str:
    store = S3Store("fedpipe", "run", endpoint=endpoint, credentials=Credentials("operator", SECRET))
    return store.form_to_write(key, 600, at_most) or store.url_to_write(key, 600)


def an_upload(endpoint: str, size: int) -> PiecesUpload:
    upload = update_upload(partial(forms_of, endpoint), KEY, FOLDER, at_most=size, updates=3)
    assert isinstance(upload, PiecesUpload)
    return upload


def arrived(server: FormServer) -> bytes:
    """What the pieces in the store are together."""
    return b"".join(content for key, content in sorted(server.objects.items()) if key.startswith(f"run/{FOLDER}/"))


def test_an_update_goes_through_a_line_that_is_cut_every_three_megabytes(server: FormServer, tmp_path: Path) -> None:
    path = a_file(tmp_path, 16_000_000)
    with cutting_proxy(server.endpoint, every=3_000_000) as line:
        upload = an_upload(server.endpoint, 16_000_000)
        through = [one.model_copy(update={"url": one.url.replace(server.endpoint, line.endpoint)}) for one in upload.pieces]  # type: ignore[union-attr]

        artifact = send(path, upload.model_copy(update={"pieces": tuple(through)}), sleep=no_pause)

        assert line.cuts >= 5
        assert line.up <= 1.1 * path.stat().st_size
    assert arrived(server) == path.read_bytes()
    assert artifact.size == 16_000_000


def test_a_store_that_is_busy_gets_a_piece_again_and_no_other(server: FormServer, tmp_path: Path) -> None:
    path, upload = a_file(tmp_path, 9 * MIB), an_upload(server.endpoint, 9 * MIB)
    server.requests.clear()
    server.statuses = [204, 503, 503]

    send(path, upload, sleep=no_pause)

    first, again = names.piece(FOLDER, 0), names.piece(FOLDER, 1)
    assert [key.rpartition("run/")[2] for key in server.requests[:5]] == [first, again, again, again, names.piece(FOLDER, 2)]


def test_an_adapter_that_is_larger_than_its_plan_is_refused_before_anything_is_sent(server: FormServer, tmp_path: Path) -> None:
    path, upload = a_file(tmp_path, 10 * MIB), an_upload(server.endpoint, 9 * MIB)
    server.requests.clear()

    with pytest.raises(TaskFailed, match=r"has 40 pieces of 262144 bytes, and the task takes 36") as failed:
        send(path, upload, sleep=no_pause)

    assert failed.value.reason is FailureReason.TRANSFER_FAILED
    assert server.requests == []


def test_a_form_of_a_piece_takes_no_more_than_a_piece(server: FormServer) -> None:
    form = an_upload(server.endpoint, 9 * MIB).pieces[3]
    assert isinstance(form, PostForm)

    too_much = httpx.post(form.url, data=dict(form.fields), files={"file": ("x", bytes(LEAST_PIECE_BYTES + 1))})
    other = httpx.post(form.url, data=form.fields | {"key": f"run/{FOLDER}/0099"}, files={"file": ("x", b"x")})

    assert (too_much.status_code, other.status_code) == (400, 403)


@given(at_most=st.integers(PIECES_FROM_BYTES, 1 << 40), form_bytes=st.integers(200, 8000), updates=st.integers(1, 1_000_000))
def test_pieces_are_few_enough_for_a_secret_and_for_a_listing_and_together_no_larger_than_the_plan(
    at_most: int, form_bytes: int, updates: int
) -> None:
    size = piece_bytes(at_most, form_bytes=form_bytes, updates=updates)
    count = -(-at_most // size)

    assert count <= MAX_PIECES
    assert count * form_bytes <= 400_000
    assert count == 1 or count * updates <= 100_000
    assert size == LEAST_PIECE_BYTES or (count - 1) * size < at_most


def test_a_small_update_and_one_for_a_store_without_forms_are_one_object(server: FormServer) -> None:
    small = update_upload(partial(forms_of, server.endpoint), KEY, FOLDER, at_most=PIECES_FROM_BYTES - 1, updates=3)
    by_url = update_upload(lambda key, _size: f"https://store/{key}", KEY, FOLDER, at_most=PIECES_FROM_BYTES, updates=3)

    assert isinstance(small, PostForm)
    assert small.fields["key"] == f"run/{KEY}"
    assert by_url == f"https://store/{KEY}"


@given(pieces=st.lists(st.binary(max_size=9), min_size=1, max_size=6), offset=st.integers(0, 60), length=st.integers(0, 60))
def test_pieces_read_as_one_file(pieces: list[bytes], offset: int, length: int) -> None:
    class Piece:
        def __init__(self, content: bytes) -> None:
            self.content, self.size = content, len(content)

        def read(self, offset: int, length: int) -> bytes:
            assert offset + length <= self.size
            return self.content[offset : offset + length]

    ends = tuple(sum(map(len, pieces[: number + 1])) for number in range(len(pieces)))

    reader = PiecesReader(tuple(map(Piece, pieces)), ends)

    assert reader.size == len(b"".join(pieces))
    assert reader.read(offset, length) == b"".join(pieces)[offset : offset + length]


def test_the_object_counts_where_it_is_there_and_pieces_up_to_the_first_that_is_missing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for number in (0, 1, 3):
        store.write(names.piece(FOLDER, number), bytes([number]) * 4)
    with open_whole_or_pieces(store, KEY, FOLDER, 12) as reader:
        assert reader.read(0, 100) == bytes(4) + b"\1" * 4

    store.write(KEY, b"whole")

    with open_whole_or_pieces(store, KEY, FOLDER, 5) as reader:
        assert reader.read(0, reader.size) == b"whole"


def test_where_there_is_neither_the_key_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"{KEY}: the object is not in the store, and nor are pieces"),
        open_whole_or_pieces(DirectoryStore(tmp_path), KEY, FOLDER, 1),
    ):
        pass


@pytest.mark.parametrize("name", ["moto", "nanio"])
def test_the_operator_reads_on_after_a_cut_and_reads_little_twice(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    server: Server = request.getfixturevalue(name)
    path = a_file(tmp_path, 12_000_000)
    server.store(tmp_path.name).write_file("adapter", path)
    with cutting_proxy(server.endpoint, every=3_000_000) as line:
        store = S3Store("fedpipe", tmp_path.name, endpoint=line.endpoint, credentials=CREDENTIALS)

        with store.open_reader("adapter") as reader:
            assert reader.read(0, reader.size) == path.read_bytes()

        assert line.cuts >= 3
        assert line.down <= 1.1 * path.stat().st_size
