"""Tests for buckets only: signatures, presigned URLs, errors of a server."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread

import boto3
import httpx
import pytest
from botocore import auth
from botocore.stub import Stubber
from s3_servers import CREDENTIALS, Server

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store import Credentials, S3Store

Responding = Callable[[int, str], S3Store]


@pytest.fixture
def responding() -> Iterator[Responding]:
    """A store with a server that sends the same response to every request."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, code: str) -> S3Store:
        body = f"<Error><Code>{code}</Code><Message>the message</Message></Error>".encode()

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
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """No retries, which would only slow down the test."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def test_a_presigned_url_puts_and_gets_exactly_one_object(nanio: Server) -> None:
    store = nanio.store("presigned")

    put = httpx.put(store.url_to_write("updates/a/adapter.safetensors", 60), content=b"factors")
    got = httpx.get(store.url_to_read("updates/a/adapter.safetensors", 60))

    assert put.status_code == 200
    assert got.content == b"factors"


def test_a_presigned_url_changed_to_another_key_is_refused(nanio: Server) -> None:
    store = nanio.store("moved")
    store.write("updates/b/adapter.safetensors", b"of site b")

    stolen = httpx.get(store.url_to_read("updates/a/adapter.safetensors", 60).replace("updates/a", "updates/b"))
    forged = httpx.put(store.url_to_write("updates/a/adapter.safetensors", 60).replace("updates/a", "updates/b"), content=b"forged")

    assert (stolen.status_code, forged.status_code) == (403, 403)
    assert store.read("updates/b/adapter.safetensors") == b"of site b"


def test_a_url_to_read_does_not_allow_writing(nanio: Server) -> None:
    store = nanio.store("verbs")

    assert httpx.put(store.url_to_read("plan.json", 60), content=b"forged").status_code == 403
    assert store.read("plan.json") is None


@pytest.mark.parametrize("to_write", [False, True], ids=["to read", "to write"])
def test_a_url_moved_to_another_key_verb_or_listing_is_refused(nanio: Server, to_write: bool) -> None:
    store = nanio.store("held")
    for key in ("plan.json", "other.json"):
        store.write(key, b"{}")
    url = (store.url_to_write if to_write else store.url_to_read)("plan.json", 60)
    bucket, _, query = url.partition("/held/plan.json?")

    others = [url.replace("plan.json", "other.json"), f"{bucket}?{query}", f"{bucket}/?list-type=2&prefix=held&{query}"]
    answers = [httpx.get(other) for other in others] + [httpx.delete(url), (httpx.get if to_write else httpx.put)(url)]

    assert [answer.status_code for answer in answers] == [403] * len(answers)
    assert sorted(store.list()) == ["other.json", "plan.json"]


def test_an_expired_url_is_refused(nanio: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = nanio.store("expired")
    store.write("plan.json", b"{}")
    with monkeypatch.context() as an_hour_ago:
        an_hour_ago.setattr(auth, "get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1))
        expired, valid = store.url_to_read("plan.json", 60), store.url_to_read("plan.json", 7200)

    assert httpx.get(expired).status_code == 403
    assert httpx.get(valid).status_code == 200


@pytest.mark.parametrize("credentials", [Credentials("operator", "wrong"), Credentials("stranger", "wrong")], ids=["secret", "name"])
def test_wrong_credentials_are_a_user_error(nanio: Server, credentials: Credentials) -> None:
    store = nanio.store("denied", credentials=credentials)

    # The write is last: nanio does not read the body of a refused request, which breaks the next request on this connection.
    for use in (store.list, lambda: store.read("plan.json"), lambda: store.size("plan.json"), lambda: store.write("plan.json", b"{}")):
        with pytest.raises(UserError) as refusal:
            use()

        assert refusal.value.reason == "StoreDenied"


def test_a_listing_can_have_more_than_a_thousand_keys(nanio: Server) -> None:
    store = nanio.store("paged")
    keys = [f"rounds/{number:04d}/plan.json" for number in range(1001)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: store.write(key, b""), keys))

    assert store.list("rounds") == keys


def test_the_secret_is_not_shown() -> None:
    assert "hidden" not in repr(Credentials("operator", "hidden"))


@pytest.mark.parametrize("server", ["moto", "nanio"])
def test_a_missing_bucket_is_a_user_error(server: str, request: pytest.FixtureRequest) -> None:
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
@pytest.mark.usefixtures("no_retries")
def test_an_error_response_becomes_a_transient_or_a_user_error(
    responding: Responding, *, status: int, code: str, kind: type[FedPipeError], reason: str
) -> None:
    store = responding(status, code)

    with pytest.raises(kind) as failure:
        store.read("plan.json")

    assert failure.value.reason == reason
    assert "fedpipe" in failure.value.message


@pytest.mark.usefixtures("no_retries")
def test_an_endpoint_that_is_not_reachable_is_a_transient_error_that_names_it() -> None:
    store = S3Store("fedpipe", "runs", endpoint="http://127.0.0.1:1", credentials=Credentials("a", "b"))

    with pytest.raises(TransientError) as failure:
        store.list()

    assert failure.value.reason == "StoreUnreachable"
    assert "http://127.0.0.1:1" in failure.value.message


def test_an_invalid_endpoint_is_a_user_error() -> None:
    with pytest.raises(UserError) as failure:
        S3Store("fedpipe", "runs", endpoint="minio:9000", credentials=Credentials("a", "b"))

    assert failure.value.reason == "StoreRefused"


def test_an_invalid_bucket_name_is_a_user_error(moto: Server) -> None:
    with pytest.raises(UserError) as failure:
        moto.store("runs", bucket="no bucket!").list()

    assert failure.value.reason == "StoreRefused"


def test_one_of_two_writers_of_a_commit_wins(moto: Server) -> None:
    for attempt in range(10):
        outcome = race(moto.store("race"), f"rounds/{attempt}/result.json")

        assert sorted(outcome.values()) == [False, True]
        assert moto.store("race").read(f"rounds/{attempt}/result.json") == next(data for data, won in outcome.items() if won)


def race(store: S3Store, key: str) -> dict[bytes, bool]:
    """Two simultaneous writers; by their data, whether `create` returned True."""
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


def test_if_the_store_ignores_the_condition_the_later_writer_still_loses(nanio: Server) -> None:
    first, second = nanio.store("fallback"), nanio.store("fallback")

    assert first._put_if_absent("ignored", b"one")
    assert second._put_if_absent("ignored", b"two"), "this server now supports If-None-Match: the fallback needs another server"
    assert first.create("result.json", b"first")
    assert not second.create("result.json", b"second")
    assert second.read("result.json") == b"first"


def test_if_the_store_ignores_the_condition_the_overwritten_writer_loses(nanio: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = nanio.store("overwritten"), nanio.store("overwritten")
    put = first._put_if_absent

    def put_and_be_overwritten(key: str, data: bytes) -> bool:
        is_written = put(key, data)
        second.write(key, b"second")
        return is_written

    monkeypatch.setattr(first, "_put_if_absent", put_and_be_overwritten)

    assert not first.create("result.json", b"first")


@pytest.mark.parametrize("name", ["moto", "nanio"])
def test_an_object_that_is_replaced_while_it_is_read_is_an_error(name: str, request: pytest.FixtureRequest) -> None:
    store = request.getfixturevalue(name).store("rewritten")
    store.write("adapter", b"what was opened")

    with store.open_reader("adapter") as reader:
        assert reader.read(0, 4) == b"what"
        store.write("adapter", b"what came after")

        with pytest.raises(TransientError, match="ObjectChanged"):
            reader.read(5, 4)


# --- key pairs that expire, an endpoint for trainers, regions


def expiring(server: Server, at: float) -> S3Store:
    pair = replace(CREDENTIALS, session_token="a-token", expires_at=at)  # noqa: S106 -- of no account
    return S3Store("fedpipe", "expiring", endpoint=server.endpoint, credentials=pair, clock=lambda: 1000.0)


def validity(url: str) -> int:
    return int(httpx.URL(url).params["X-Amz-Expires"])


@pytest.mark.parametrize(("left", "asked", "granted"), [(600.0, 3600, 600), (7200.0, 3600, 3600)])
def test_a_url_never_outlives_the_key_pair_that_signed_it(moto: Server, left: float, asked: int, granted: int) -> None:
    store = expiring(moto, 1000.0 + left)

    assert [validity(url) for url in (store.url_to_read("a", asked), store.url_to_write("a", asked))] == [granted, granted]
    assert "X-Amz-Security-Token=a-token" in store.url_to_read("a", asked)


def test_a_key_pair_that_has_expired_signs_nothing_and_says_what_to_do(moto: Server) -> None:
    store = expiring(moto, 1030.0)

    with pytest.raises(UserError, match=r"CredentialsExpired: .*renew it in its Secret"):
        store.url_to_read("a", 3600)


def test_trainers_get_urls_of_their_own_endpoint_and_the_operator_keeps_to_its_own(moto: Server) -> None:
    store = S3Store("fedpipe", "apart", endpoint=moto.endpoint, trainer_endpoint="https://s3.example.com", credentials=CREDENTIALS)

    store.write("a", b"content")

    assert store.read("a") == b"content"
    assert {httpx.URL(url).host for url in (store.url_to_read("a", 60), store.url_to_write("a", 60))} == {"s3.example.com"}


def test_a_bucket_of_another_region_is_told_before_a_trainer_gets_a_url_that_it_cannot_use(
    moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.endpoint)  # in the place of AWS
    client = boto3.client("s3", region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b")  # noqa: S106 -- moto asks for none
    client.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})

    with pytest.raises(UserError, match=r"WrongRegion: bucket elsewhere at AWS is in the region eu-west-1, and store.region is us-east-1"):
        S3Store("elsewhere", "", credentials=CREDENTIALS).url_to_read("a", 60)

    assert S3Store("elsewhere", "", credentials=CREDENTIALS, region="eu-west-1").url_to_read("a", 60)


def test_the_region_is_known_to_a_pair_that_may_list_its_own_prefix_only() -> None:
    store = S3Store("elsewhere", "", credentials=CREDENTIALS)
    with Stubber(store._client) as aws:
        told = {"HTTPHeaders": {"x-amz-bucket-region": "eu-west-1"}}
        aws.add_client_error("head_bucket", "403", "Forbidden", 403, response_meta=told)
        with pytest.raises(UserError, match=r"WrongRegion: .* is in the region eu-west-1"):
            store.url_to_read("a", 60)
        aws.add_client_error("head_bucket", "403", "Forbidden", 403)
        with pytest.raises(UserError, match="StoreDenied"):
            store.url_to_read("a", 60)


def test_a_store_that_wants_another_region_says_which(responding: Responding) -> None:
    with pytest.raises(UserError, match=r"WrongRegion: .*the message.*set store.region to the bucket's"):
        responding(400, "AuthorizationHeaderMalformed").read("a")
