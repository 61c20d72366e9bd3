"""A 403 for a presigned URL: when it may mean that the object is missing, tested with the responses of S3 stores."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serving import serving

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.presigned import error_code, may_be_missing
from fedpipe_trainer.task_runtime import TaskRuntime

SIGNED = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
AWS_DENIED = "<Error><Code>AccessDenied</Code><Message>Access Denied</Message><RequestId>A1</RequestId></Error>"
AWS_EXPIRED = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message><Expires>2026-03-01T13:00:00Z</Expires></Error>"
CEPH_DENIED_OR_EXPIRED = "<?xml version='1.0'?><Error><Code>AccessDenied</Code><RequestId>tx0</RequestId></Error>"
WRONG_SIGNATURE = "<Error><Code>SignatureDoesNotMatch</Code><SignatureProvided>5ec2e7</SignatureProvided></Error>"
SESSION_OVER = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


@dataclass
class Bucket:
    """A bucket that answers every request with the same 403, and whose clock is set by the test."""

    port: int
    body: str = AWS_DENIED
    now: datetime = SIGNED + timedelta(minutes=5)
    requests: list[str] = field(default_factory=list)

    def url(self) -> str:
        signature = f"X-Amz-Date={SIGNED:%Y%m%dT%H%M%SZ}&X-Amz-Expires=3600&X-Amz-Signature=5ec2e7"
        return f"http://127.0.0.1:{self.port}/bucket/rounds/0001/checkpoints/a.safetensors?{signature}"


class BucketServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bucket = Bucket(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    server: BucketServer

    def do_GET(self) -> None:
        bucket, body = self.server.bucket, self.server.bucket.body.encode()
        bucket.requests.append(self.path)
        self.send_response_only(403)
        self.send_header("Date", format_datetime(bucket.now, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with BucketServer() as server, serving(server):
        yield server.bucket


@pytest.fixture
def runtime(tmp_path: Path) -> TaskRuntime:
    return TaskRuntime(folder=tmp_path, cache=tmp_path, write_progress=lambda _: None, stop_requested=lambda: False)


@pytest.mark.parametrize("body", [AWS_DENIED, CEPH_DENIED_OR_EXPIRED], ids=["aws", "ceph"])
def test_a_checkpoint_counts_as_missing_if_the_store_does_not_reveal_that_it_is_missing(
    bucket: Bucket, runtime: TaskRuntime, tmp_path: Path, body: str
) -> None:
    bucket.body = body

    assert not runtime.download_if_exists(bucket.url(), tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    assert len(bucket.requests) == 1


@pytest.mark.parametrize(
    ("body", "age"),
    [
        (AWS_EXPIRED, 2 * HOUR),
        (CEPH_DENIED_OR_EXPIRED, 2 * HOUR),
        (CEPH_DENIED_OR_EXPIRED, -HOUR),
        (WRONG_SIGNATURE, timedelta(0)),
        (SESSION_OVER, timedelta(0)),
        ("", timedelta(0)),
        ("<html>a proxy's own page</html>", timedelta(0)),
    ],
    ids=["expired", "expired, no message", "dated ahead", "wrong signature", "session over", "no body", "not a store"],
)
def test_a_refused_url_does_not_count_as_a_missing_object(
    bucket: Bucket, runtime: TaskRuntime, tmp_path: Path, body: str, age: timedelta
) -> None:
    bucket.body, bucket.now = body, SIGNED + age

    with pytest.raises(TaskFailed, match="403 Forbidden") as failed:
        runtime.download_if_exists(bucket.url(), tmp_path / "checkpoint")

    assert failed.value.reason is FailureReason.TRANSFER_FAILED
    assert "5ec2e7" not in failed.value.message


def test_a_required_object_never_counts_as_missing_and_the_error_has_the_code_of_the_store(
    bucket: Bucket, runtime: TaskRuntime, tmp_path: Path
) -> None:
    with pytest.raises(TaskFailed, match=r"403 Forbidden \(AccessDenied\): the presigned URL has expired or does not allow this"):
        runtime.download(bucket.url(), tmp_path / "adapter")


@pytest.mark.parametrize("url", ["http://h/b/k", "http://h/b/k?X-Amz-Date=today&X-Amz-Expires=60", "http://h/b/k?X-Amz-Expires=60"])
def test_a_url_without_an_expiry_time_may_have_expired(url: str) -> None:
    assert not may_be_missing(url, "AccessDenied", "Sun, 01 Mar 2026 12:05:00 GMT")


@pytest.mark.parametrize("date", ["", "yesterday", "Sun, 01 Mar 2026 12:05:00"])
def test_without_the_time_of_the_store_the_url_may_have_expired(date: str) -> None:
    assert not may_be_missing(Bucket(80).url(), "AccessDenied", date)


def test_the_error_code_is_found_in_the_responses_of_every_store() -> None:
    assert [error_code(body.encode()) for body in (AWS_DENIED, CEPH_DENIED_OR_EXPIRED, WRONG_SIGNATURE, "", "<Code>a b</Code>")] == [
        "AccessDenied",
        "AccessDenied",
        "SignatureDoesNotMatch",
        "",
        "",
    ]
