"""What only buckets have: signatures, presigned URLs, faults of a server."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread

import httpx
import pytest
from botocore import auth
from s3_servers import Server

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store import Credentials, S3Store

Answering = Callable[[int, str], S3Store]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """A store behind a server that gives one and the same answer to everything."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, code: str) -> S3Store:
        body = f"<Error><Code>{code}</Code><Message>so it is</Message></Error>".encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[0].serve_forever, daemon=True).start()
        return S3Store("fedpipe", "runs", endpoint=f"http://127.0.0.1:{servers[0].server_port}", credentials=Credentials("a", "b"))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further attempts, whose pauses would only slow the test."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def test_a_presigned_url_puts_and_gets_exactly_one_object(nanio: Server) -> None:
    store = nanio.store("presigned")

    put = httpx.put(store.url_to_write("updates/a/adapter.safetensors", 60), content=b"factors")
    got = httpx.get(store.url_to_read("updates/a/adapter.safetensors", 60))

    assert put.status_code == 200
    assert got.content == b"factors"


def test_a_presigned_url_moved_to_another_key_is_refused(nanio: Server) -> None:
    store = nanio.store("moved")
    store.write("updates/b/adapter.safetensors", b"of site b")

    stolen = httpx.get(store.url_to_read("updates/a/adapter.safetensors", 60).replace("updates/a", "updates/b"))
    forged = httpx.put(store.url_to_write("updates/a/adapter.safetensors", 60).replace("updates/a", "updates/b"), content=b"forged")

    assert (stolen.status_code, forged.status_code) == (403, 403)
    assert store.read("updates/b/adapter.safetensors") == b"of site b"


def test_a_url_to_read_does_not_allow_to_write(nanio: Server) -> None:
    store = nanio.store("verbs")

    assert httpx.put(store.url_to_read("plan.json", 60), content=b"forged").status_code == 403
    assert store.read("plan.json") is None


def test_an_expired_url_is_refused(nanio: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = nanio.store("expired")
    store.write("plan.json", b"{}")
    with monkeypatch.context() as an_hour_ago:
        an_hour_ago.setattr(auth, "get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1))
        expired, valid = store.url_to_read("plan.json", 60), store.url_to_read("plan.json", 7200)

    assert httpx.get(expired).status_code == 403
    assert httpx.get(valid).status_code == 200


@pytest.mark.parametrize("credentials", [Credentials("operator", "wrong"), Credentials("stranger", "wrong")], ids=["secret", "name"])
def test_wrong_credentials_are_told_to_the_user(nanio: Server, credentials: Credentials) -> None:
    store = nanio.store("denied", credentials=credentials)

    # The write comes last: nanio leaves a refused body unread, which spoils the connection for a next request.
    for use in (store.list, lambda: store.read("plan.json"), lambda: store.size("plan.json"), lambda: store.write("plan.json", b"{}")):
        with pytest.raises(UserError) as refusal:
            use()

        assert refusal.value.reason == "StoreDenied"


def test_a_listing_goes_on_past_a_thousand_keys(nanio: Server) -> None:
    store = nanio.store("paged")
    keys = [f"rounds/{number:04d}/plan.json" for number in range(1001)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.write(key, b""), keys))

    assert store.list("rounds") == keys


def test_the_secret_is_not_shown() -> None:
    assert "hidden" not in repr(Credentials("operator", "hidden"))


@pytest.mark.parametrize("server", ["moto", "nanio"])
def test_a_missing_bucket_is_told_to_the_user(server: str, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue(server).store("runs", bucket="no-such-bucket")

    for use in (store.list, lambda: store.read("plan.json"), lambda: store.create("plan.json", b"{}")):
        with pytest.raises(UserError) as refusal:
            use()

        assert refusal.value.reason == "BucketMissing"
        assert "no-such-bucket" in refusal.value.message


@pytest.mark.parametrize(
    ("status", "code", "kind", "reason"),
    [
        (500, "InternalError", TransientError, "StoreUnavailable"),
        (503, "SlowDown", TransientError, "StoreUnavailable"),
        (429, "TooManyRequests", TransientError, "StoreUnavailable"),
        (400, "RequestTimeout", TransientError, "StoreUnavailable"),
        (507, "InsufficientStorage", UserError, "StoreFull"),
        (500, "XMinioStorageFull", UserError, "StoreFull"),
        (403, "QuotaExceeded", UserError, "StoreFull"),
        (403, "AccessDenied", UserError, "StoreDenied"),
        (403, "RequestTimeTooSkewed", UserError, "StoreDenied"),
        (400, "ExpiredToken", UserError, "StoreDenied"),
        (404, "NoSuchBucket", UserError, "BucketMissing"),
        (400, "InvalidArgument", UserError, "StoreRefused"),
        (404, "", UserError, "StoreRefused"),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_servers_answer_becomes_one_of_two_failures(
    answering: Answering, *, status: int, code: str, kind: type[FedPipeError], reason: str
) -> None:
    store = answering(status, code)

    with pytest.raises(kind) as failure:
        store.read("plan.json")

    assert failure.value.reason == reason
    assert "fedpipe" in failure.value.message


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_where_nothing_listens_may_be_tried_again_and_is_named() -> None:
    store = S3Store("fedpipe", "runs", endpoint="http://127.0.0.1:1", credentials=Credentials("a", "b"))

    with pytest.raises(TransientError) as failure:
        store.list()

    assert failure.value.reason == "StoreUnreachable"
    assert "http://127.0.0.1:1" in failure.value.message


def test_an_endpoint_that_is_no_address_is_told_to_the_user() -> None:
    with pytest.raises(UserError) as failure:
        S3Store("fedpipe", "runs", endpoint="minio:9000", credentials=Credentials("a", "b"))

    assert failure.value.reason == "StoreRefused"


def test_a_bucket_name_that_cannot_be_is_told_to_the_user(moto: Server) -> None:
    with pytest.raises(UserError) as failure:
        moto.store("runs", bucket="no bucket!").list()

    assert failure.value.reason == "StoreRefused"


def test_of_two_writers_of_one_commit_one_wins(moto: Server) -> None:
    for attempt in range(10):
        outcome = race(moto.store("race"), f"rounds/{attempt}/result.json")

        assert sorted(outcome.values()) == [False, True]
        assert moto.store("race").read(f"rounds/{attempt}/result.json") == next(data for data, won in outcome.items() if won)


def race(store: S3Store, key: str) -> dict[bytes, bool]:
    """Two writers at the same moment; by their bytes, whether they believe to have won."""
    start, outcome = Barrier(2), {}

    def write(data: bytes) -> None:
        start.wait()
        outcome[data] = store.create(key, data)

    writers = [Thread(target=write, args=(data,)) for data in (b"first", b"second")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    return outcome


def test_where_the_condition_is_ignored_the_later_writer_still_loses(nanio: Server) -> None:
    ours, theirs = nanio.store("fallback"), nanio.store("fallback")

    assert ours._put_if_absent("ignored", b"one")
    assert theirs._put_if_absent("ignored", b"two"), "this server began to honour If-None-Match: the fallback needs another one"
    assert ours.create("result.json", b"ours")
    assert not theirs.create("result.json", b"theirs")
    assert theirs.read("result.json") == b"ours"


def test_where_the_condition_is_ignored_the_overwritten_writer_learns_so(nanio: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = nanio.store("overwritten"), nanio.store("overwritten")
    put = ours._put_if_absent

    def put_and_be_overwritten(key: str, data: bytes) -> bool:
        done = put(key, data)
        theirs.write(key, b"theirs")
        return done

    monkeypatch.setattr(ours, "_put_if_absent", put_and_be_overwritten)

    assert not ours.create("result.json", b"ours")


@pytest.mark.parametrize("name", ["moto", "nanio"])
def test_an_object_written_again_while_it_is_read_is_noticed(name: str, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue(name).store("rewritten")
    store.write("adapter", b"what the gate saw")

    with store.open_reader("adapter") as reader:
        assert reader.read(0, 4) == b"what"
        store.write("adapter", b"what it never saw")

        with pytest.raises(TransientError, match="ObjectChanged"):
            reader.read(5, 4)
