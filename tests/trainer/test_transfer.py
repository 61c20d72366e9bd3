"""Objects in and out, against real files and a real HTTP server that has bad days."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serving import serving

from fedpipe_trainer.contract import Artifact, FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.transfer import receive, send, without_query

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HANG_UP = 0  # in the middle of the answer
SIGNATURE = "X-Amz-Signature=5ec2e7"


@dataclass
class Store:
    """An object store of one bucket, that first gives the answers it was told to give."""

    objects: dict[str, bytes] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    port: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/bucket/{name}?{SIGNATURE}"


class StoreServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = Store(port=self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    server: StoreServer

    def do_GET(self) -> None:
        content = self.server.store.objects.get(self.path)
        if not self.refused():
            self.answer(404 if content is None else 200, content or b"")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.refused():
            self.server.store.objects[self.path] = content
            self.answer(200, b"")

    def refused(self) -> bool:
        store = self.server.store
        store.asked.append(self.command)
        status = store.answers.pop(0) if store.answers else 200
        if status == HANG_UP:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        elif status != 200:
            self.answer(status, b"<Error/>")
        return status != 200

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        for name, value in self.server.store.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def store() -> Iterator[Store]:
    with StoreServer() as server, serving(server):
        yield server.store


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(CONTENT)
    return path


def test_what_is_sent_can_be_received(store: Store, local: Path, tmp_path: Path) -> None:
    for url in (store.url("a"), f"file://{tmp_path}/store/rounds/0001/a%20b"):
        artifact = send(local, url)
        size = receive(url, tmp_path / "back", sha256=SHA256)

        assert artifact == Artifact(name="adapter.safetensors", size=len(CONTENT), sha256=SHA256)
        assert size == len(CONTENT)
        assert (tmp_path / "back").read_bytes() == CONTENT
    assert (tmp_path / "store/rounds/0001/a b").is_file()


def test_an_empty_file_travels_too(store: Store, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()

    send(empty, store.url("empty"))

    assert receive(store.url("empty"), tmp_path / "back") == 0


def test_a_missing_object_is_no_error(store: Store, tmp_path: Path) -> None:
    assert receive(store.url("nothing"), tmp_path / "back") is None
    assert receive(f"file://{tmp_path}/nothing", tmp_path / "back") is None
    assert not (tmp_path / "back").exists()


def test_other_bytes_than_the_task_names_are_refused_and_not_kept(store: Store, local: Path, tmp_path: Path) -> None:
    send(local, store.url("a"))

    failure = failing(lambda: receive(store.url("a"), tmp_path / "back", sha256="0" * 64))

    assert f"has SHA-256 {SHA256}, the task says 000" in failure.message
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("bad_days", [[500], [503, 429], [HANG_UP], [HANG_UP, 500, HANG_UP, 502]])
def test_a_store_that_recovers_is_asked_again_after_a_growing_pause(store: Store, local: Path, tmp_path: Path, bad_days: list[int]) -> None:
    send(local, store.url("a"))
    store.answers = list(bad_days)
    pauses: list[float] = []

    receive(store.url("a"), tmp_path / "back", sha256=SHA256, pause=pauses.append)

    assert pauses == [0.5, 1.0, 2.0, 4.0][: len(bad_days)]


def test_an_upload_is_sent_again_whole(store: Store, local: Path) -> None:
    store.answers = [503, 500]

    send(local, store.url("a"), pause=lambda _: None)

    assert list(store.objects.values()) == [CONTENT]
    assert store.asked == ["PUT"] * 3


def test_the_store_says_how_long_to_wait_but_not_too_long(store: Store, local: Path) -> None:
    pauses: list[float] = []
    for seconds in ("7", "86400"):
        store.answers, store.headers = [429], {"Retry-After": seconds}
        send(local, store.url("a"), pause=pauses.append)

    assert pauses == [7.0, 20.0]


def test_attempts_are_finite(store: Store, local: Path) -> None:
    store.answers = [503] * 100

    failure = failing(lambda: send(local, store.url("a"), pause=lambda _: None))

    assert "503 Service Unavailable, 9 times in a row" in failure.message
    assert len(store.asked) == 9


def test_a_store_out_of_reach_is_told_by_name(store: Store, local: Path) -> None:
    failure = failing(lambda: send(local, "http://127.0.0.1:1/bucket/a?X-Amz-Signature=5ec2e7", pause=lambda _: None))

    assert failure.message.startswith("http://127.0.0.1:1/bucket/a: ConnectError")
    assert store.asked == []


@pytest.mark.parametrize("status", [301, 400, 403, 404, 412])
def test_a_refusal_is_final(store: Store, local: Path, status: int) -> None:
    store.answers = [status]

    failure = failing(lambda: send(local, store.url("a")))

    assert f"the store answered {status}" in failure.message
    assert len(store.asked) == 1


@pytest.mark.parametrize("answers", [[403], [503] * 9, [HANG_UP] * 9, [200]], ids=["refused", "down", "cut off", "other bytes"])
def test_no_signature_is_ever_told(store: Store, local: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: list[int]) -> None:
    caplog.set_level("DEBUG")
    send(local, store.url("a"))
    store.answers = answers

    failure = failing(lambda: receive(store.url("a"), tmp_path / "back", sha256="0" * 64, pause=lambda _: None))

    assert "5ec2e7" in store.url("a")
    assert "5ec2e7" not in failure.message + caplog.text


def test_a_url_is_shown_without_what_is_secret_in_it() -> None:
    assert without_query("https://user:key@host:9000/a/b?c=d#e") == "https://host:9000/a/b"


def test_a_reader_never_sees_half_a_file(local: Path, tmp_path: Path) -> None:
    target = tmp_path / "store" / "a"
    send(local, target.as_uri())
    old = target.stat().st_ino

    local.write_bytes(b"new")
    send(local, target.as_uri())

    assert target.stat().st_ino != old  # a new file took its place
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]  # nothing is left beside it


def test_a_store_that_is_no_folder_is_told_by_its_path(local: Path) -> None:
    failure = failing(lambda: send(local, f"{local.as_uri()}/a"))

    assert f"cannot write {local}/a: " in failure.message


def test_a_full_disk_at_the_store_is_told_by_its_path(local: Path, full_disk: Path) -> None:
    failure = failing(lambda: send(local, f"file://{full_disk}/a"))

    assert failure.message == f"cannot write {full_disk}/a: No space left on device"
    assert list(full_disk.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.transfer import send
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    send(Path(sys.argv[1]), sys.argv[2])
except TaskFailed as failure:
    print(failure.reason, failure.message)
"""


def test_a_limit_on_file_size_is_told_by_its_path(local: Path, tmp_path: Path) -> None:
    target = tmp_path / "store" / "a"

    said = subprocess.run([sys.executable, "-c", LIMITED, local, target.as_uri()], capture_output=True, text=True, check=True).stdout

    assert said.strip() == f"TransferFailed cannot write {target}: File too large"
    assert list(target.parent.iterdir()) == []


def failing(transfer: object) -> TaskFailed:
    assert callable(transfer)
    with pytest.raises(TaskFailed) as caught:
        transfer()
    assert caught.value.reason is FailureReason.TRANSFER_FAILED
    return caught.value
