"""Downloads and uploads with real files and a real HTTP server that can fail."""

import hashlib
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serving import serving

from fedpipe_trainer.contract import Artifact, FailureReason, PostForm
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.transfer import receive, send, without_query

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CLOSE_CONNECTION = 0  # in the middle of the response
MANY = 40
SIGNATURE = "X-Amz-Signature=5ec2e7"


@dataclass
class Store:
    """An object store with one bucket, whose first responses have the statuses in `statuses`."""

    objects: dict[str, bytes] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    port: int = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/bucket/{name}?{SIGNATURE}"


class StoreServer(ThreadingHTTPServer):
    def __init__(self, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.store = Store(port=self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    server: StoreServer

    def do_GET(self) -> None:
        content = self.server.store.objects.get(self.path)
        if not self.refuse():
            self.answer(404 if content is None else 200, content or b"")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.refuse():
            self.server.store.objects[self.path] = content
            self.answer(200, b"")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.refuse():
            self.server.store.objects[self.path] = content
            self.answer(204, b"")

    def refuse(self) -> bool:
        store = self.server.store
        store.requests.append(self.command)
        status = store.statuses.pop(0) if store.statuses else 200
        if status == CLOSE_CONNECTION:
            self.send_response(200)
            for name, value in store.headers.items():
                self.send_header(name, value)
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
        """Write no log."""


@pytest.fixture
def store() -> Iterator[Store]:
    with StoreServer() as server, serving(server):
        yield server.store


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(CONTENT)
    return path


def test_an_uploaded_file_can_be_downloaded(store: Store, local: Path, tmp_path: Path) -> None:
    for url in (store.url("a"), f"file://{tmp_path}/store/rounds/0001/a%20b"):
        artifact = send(local, url)
        size = receive(url, tmp_path / "back", sha256=SHA256)

        assert artifact == Artifact(name="adapter.safetensors", size=len(CONTENT), sha256=SHA256)
        assert size == len(CONTENT)
        assert (tmp_path / "back").read_bytes() == CONTENT
    assert (tmp_path / "store/rounds/0001/a b").is_file()


def test_an_empty_file_can_be_uploaded_and_downloaded(store: Store, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()

    send(empty, store.url("empty"))

    assert receive(store.url("empty"), tmp_path / "back") == 0


def a_form(store: Store) -> PostForm:
    url = f"http://127.0.0.1:{store.port}/bucket"
    return PostForm(url=url, fields={"key": "updates/a/adapter.safetensors", "policy": "e30=", "x-amz-signature": "5ec2e7"})


def test_a_form_sends_its_fields_and_behind_them_the_file(store: Store, local: Path) -> None:
    artifact = send(local, a_form(store))
    fields, _, file = store.objects["/bucket"].partition(b'name="file"; filename="adapter.safetensors"')

    assert artifact == Artifact(name="adapter.safetensors", size=len(CONTENT), sha256=SHA256)
    assert CONTENT in file
    assert all(f'name="{name}"\r\n\r\n{value}\r\n'.encode() in fields for name, value in a_form(store).fields.items())


def test_a_form_that_fails_is_sent_again_from_the_start_and_its_signature_is_never_shown(
    store: Store, local: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.statuses = [503, 500]
    send(local, a_form(store), sleep=lambda _: None)
    store.statuses = [400]
    with pytest.raises(TaskFailed) as refused:
        send(local, a_form(store))

    assert store.requests == ["POST"] * 4
    assert CONTENT in store.objects["/bucket"]
    assert refused.value.message.startswith(f"http://127.0.0.1:{store.port}/bucket/updates/a/adapter.safetensors: the store answered 400")
    assert "5ec2e7" not in caplog.text + refused.value.message
    assert "updates/a/adapter.safetensors: the store answered 503" in caplog.text


class ChangingHandler(Handler):
    """Cuts each answer in its middle, and never has what an earlier one was of: as a store behind several servers that name it each in its
    own way, or one with weak ETags, which If-Match never matches."""

    def do_GET(self) -> None:
        requests = self.server.store.requests
        requests.append("GET")
        if len(requests) > MANY:
            self.answer(404, b"")
        elif "If-Match" in self.headers:
            self.answer(412, b"")
        else:
            requests.pop()
            self.server.store.headers = {"ETag": f'W/"{len(requests)}"'}
            self.server.store.statuses = [CLOSE_CONNECTION]
            self.refuse()


def test_a_download_that_never_gets_further_ends(tmp_path: Path) -> None:
    with StoreServer(ChangingHandler) as server, serving(server):
        with pytest.raises(TaskFailed, match=r"3 times in a row") as failed:
            receive(server.store.url("a"), tmp_path / "back", attempts=3, sleep=lambda _: None)

        assert failed.value.reason is FailureReason.TRANSFER_FAILED
        assert server.store.requests.count("GET") < MANY
    assert not (tmp_path / "back").exists()


class DrainingHandler(Handler):
    """Keeps nothing of what it receives."""

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        while left > 0:
            left -= len(self.rfile.read(min(left, 1 << 16)))
        self.answer(200, b"")

    def do_POST(self) -> None:
        self.do_PUT()


@pytest.mark.parametrize("is_form", [True, False], ids=["form", "URL"])
def test_the_memory_of_an_upload_does_not_grow_with_the_file(tmp_path: Path, is_form: bool) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(bytes(32 << 20))
    with StoreServer(DrainingHandler) as server, serving(server):
        form = a_form(server.store)
        tracemalloc.start()
        send(path, form if is_form else server.store.url("a"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 8 << 20


def test_a_missing_object_is_not_an_error(store: Store, tmp_path: Path) -> None:
    assert receive(store.url("nothing"), tmp_path / "back") is None
    assert receive(f"file://{tmp_path}/nothing", tmp_path / "back") is None
    assert not (tmp_path / "back").exists()


def test_an_object_with_another_hash_is_an_error_and_is_not_kept(store: Store, local: Path, tmp_path: Path) -> None:
    send(local, store.url("a"))

    failure = failure_of(lambda: receive(store.url("a"), tmp_path / "back", sha256="0" * 64))

    assert f"has SHA-256 {SHA256}, the task says 000" in failure.message
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("statuses", [[500], [503, 429], [CLOSE_CONNECTION], [CLOSE_CONNECTION, 500, CLOSE_CONNECTION, 502]])
def test_a_failed_request_is_retried_after_growing_pauses(store: Store, local: Path, tmp_path: Path, statuses: list[int]) -> None:
    send(local, store.url("a"))
    store.statuses = list(statuses)
    pauses: list[float] = []

    receive(store.url("a"), tmp_path / "back", sha256=SHA256, sleep=pauses.append)

    assert pauses == [0.5, 1.0, 2.0, 4.0][: len(statuses)]


def test_a_failed_upload_is_retried_from_the_start(store: Store, local: Path) -> None:
    store.statuses = [503, 500]

    send(local, store.url("a"), sleep=lambda _: None)

    assert list(store.objects.values()) == [CONTENT]
    assert store.requests == ["PUT"] * 3


def test_the_retry_after_header_is_respected_up_to_a_limit(store: Store, local: Path) -> None:
    pauses: list[float] = []
    for seconds in ("7", "86400"):
        store.statuses, store.headers = [429], {"Retry-After": seconds}
        send(local, store.url("a"), sleep=pauses.append)

    assert pauses == [7.0, 20.0]


def test_the_number_of_attempts_is_limited(store: Store, local: Path) -> None:
    store.statuses = [503] * 100

    failure = failure_of(lambda: send(local, store.url("a"), sleep=lambda _: None))

    assert "503 Service Unavailable, 9 times in a row" in failure.message
    assert len(store.requests) == 9


def test_an_unreachable_store_is_an_error_that_names_its_url(store: Store, local: Path) -> None:
    failure = failure_of(lambda: send(local, "http://127.0.0.1:1/bucket/a?X-Amz-Signature=5ec2e7", sleep=lambda _: None))

    assert failure.message.startswith("http://127.0.0.1:1/bucket/a: ConnectError")
    assert store.requests == []


@pytest.mark.parametrize("status", [301, 400, 403, 404, 412])
def test_a_refused_request_is_not_retried(store: Store, local: Path, status: int) -> None:
    store.statuses = [status]

    failure = failure_of(lambda: send(local, store.url("a")))

    assert f"the store answered {status}" in failure.message
    assert len(store.requests) == 1


@pytest.mark.parametrize(
    "statuses", [[403], [503] * 9, [CLOSE_CONNECTION] * 9, [200]], ids=["refused", "down", "connection closed", "other bytes"]
)
def test_a_signature_is_never_logged_or_reported(
    store: Store, local: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, statuses: list[int]
) -> None:
    caplog.set_level("DEBUG")
    send(local, store.url("a"))
    store.statuses = statuses

    failure = failure_of(lambda: receive(store.url("a"), tmp_path / "back", sha256="0" * 64, sleep=lambda _: None))

    assert "5ec2e7" in store.url("a")
    assert "5ec2e7" not in failure.message + caplog.text


def test_a_url_is_shown_without_its_secrets() -> None:
    assert without_query("https://user:key@host:9000/a/b?c=d#e") == "https://host:9000/a/b"


def test_a_reader_never_sees_a_partial_file(local: Path, tmp_path: Path) -> None:
    target = tmp_path / "store" / "a"
    send(local, target.as_uri())
    old = target.stat().st_ino

    local.write_bytes(b"new")
    send(local, target.as_uri())

    assert target.stat().st_ino != old  # it was replaced by a new file
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]  # no temporary file is left


def test_a_store_that_is_not_a_folder_is_an_error_that_names_its_path(local: Path) -> None:
    failure = failure_of(lambda: send(local, f"{local.as_uri()}/a"))

    assert f"cannot write {local}/a: " in failure.message


def test_a_full_disk_of_the_store_is_an_error_that_names_the_path(local: Path, full_disk: Path) -> None:
    failure = failure_of(lambda: send(local, f"file://{full_disk}/a"))

    assert failure.message == f"cannot write {full_disk}/a: No space left on device"
    assert list(full_disk.iterdir()) == []


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    failure = failure_of(lambda: receive(tmp_path.as_uri(), tmp_path / "back"))

    assert failure.message == f"cannot read {tmp_path}: Is a directory"
    assert not isinstance(failure.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_of_the_receiver_is_an_error_that_names_both(local: Path, full_disk: Path) -> None:
    failure = failure_of(lambda: receive(local.as_uri(), full_disk / "a"))

    assert failure.message == f"cannot copy {local.as_uri()} to {full_disk}/a: No space left on device"
    assert isinstance(failure.__cause__, OSError)


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


def test_a_file_size_limit_is_an_error_that_names_the_path(local: Path, tmp_path: Path) -> None:
    target = tmp_path / "store" / "a"

    output = subprocess.run([sys.executable, "-c", LIMITED, local, target.as_uri()], capture_output=True, text=True, check=True).stdout

    assert output.strip() == f"TransferFailed cannot write {target}: File too large"
    assert list(target.parent.iterdir()) == []


def failure_of(transfer: object) -> TaskFailed:
    assert callable(transfer)
    with pytest.raises(TaskFailed) as caught:
        transfer()
    assert caught.value.reason is FailureReason.TRANSFER_FAILED
    return caught.value
