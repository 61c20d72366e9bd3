"""`S3Store` against a real MinIO: the limits of presigned URLs, and concurrent conditional writes."""

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from urllib.parse import urlsplit

import httpx
import pytest
from botocore import auth, signers
from fleet_namespace import store_at

from fedpipe_operator.store import S3Store
from fedpipe_trainer.contract import PostForm

pytestmark = pytest.mark.e2e

WRITERS = 4


@pytest.fixture
def store(cluster: None) -> Iterator[S3Store]:
    del cluster
    store = store_at(f"e2e-store/{uuid.uuid4()}")
    yield store
    store.delete("")


def test_a_presigned_url_puts_and_gets_exactly_one_object(store: S3Store) -> None:
    put = httpx.put(store.url_to_write("updates/a/adapter", 60), content=b"factors")
    got = httpx.get(store.url_to_read("updates/a/adapter", 60))

    assert (put.status_code, got.content) == (200, b"factors")


@pytest.mark.parametrize(("content", "status"), [(b"0123456789", 204), (b"0123456789+", 400)])
def test_a_form_takes_as_many_bytes_as_it_allows_and_not_one_more(store: S3Store, content: bytes, status: int) -> None:
    assert post(form_of(store), content).status_code == status
    assert store.read("updates/a/result.json") == (content if status == 204 else None)
    assert store.list() == (["updates/a/result.json"] if status == 204 else []), "what forms were tried with is gone"


@pytest.mark.parametrize(
    "change", [{"key": "updates/b/result.json"}, {"acl": "public-read"}, {"x-amz-signature": "0" * 64}, {"x-amz-date": "20000101T000000Z"}]
)
def test_an_altered_form_is_refused(store: S3Store, change: dict[str, str]) -> None:
    form = form_of(store)

    assert post(form.model_copy(update={"fields": form.fields | change}), b"forged").status_code == 403
    assert store.list() == []


def test_an_expired_form_is_refused(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    form_of(store)
    with monkeypatch.context() as an_hour_ago:
        for module in (auth, signers):
            an_hour_ago.setattr(module, "get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1))
        expired, valid = form_of(store, 60), form_of(store, 7200)

    assert (post(expired, b"late").status_code, post(valid, b"late").status_code) == (403, 204)


def form_of(store: S3Store, seconds: int = 60) -> PostForm:
    form = store.form_to_write("updates/a/result.json", seconds, 10)
    assert form is not None, "MinIO has forms that bind the size"
    return form


def post(form: PostForm, content: bytes) -> httpx.Response:
    return httpx.post(form.url, data=dict(form.fields), files={"file": ("result.json", content)})


def test_an_expired_url_is_refused(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("plan.json", b"{}")
    with monkeypatch.context() as an_hour_ago:
        an_hour_ago.setattr(auth, "get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1))
        expired, valid = store.url_to_read("plan.json", 60), store.url_to_read("plan.json", 7200)

    assert (httpx.get(expired).status_code, httpx.get(valid).status_code) == (403, 200)


@pytest.mark.parametrize("part", ["X-Amz-Expires", "X-Amz-Date", "X-Amz-Signature", "X-Amz-SignedHeaders"])
def test_an_altered_url_is_refused(store: S3Store, part: str) -> None:
    store.write("plan.json", b"{}")
    url = store.url_to_read("plan.json", 60)
    value = dict(pair.split("=") for pair in urlsplit(url).query.split("&"))[part]
    altered = value[:-1] + ("1" if value[-1] != "1" else "2")

    assert httpx.get(url.replace(f"{part}={value}", f"{part}={altered}")).status_code in (400, 403)


def test_a_url_moved_to_another_key_is_refused(store: S3Store) -> None:
    store.write("updates/b/adapter", b"of site b")

    stolen = httpx.get(store.url_to_read("updates/a/adapter", 60).replace("updates/a", "updates/b"))
    forged = httpx.put(store.url_to_write("updates/a/adapter", 60).replace("updates/a", "updates/b"), content=b"forged")

    assert (stolen.status_code, forged.status_code) == (403, 403)
    assert store.read("updates/b/adapter") == b"of site b"


def test_a_url_to_read_does_not_allow_to_write_or_delete(store: S3Store) -> None:
    store.write("plan.json", b"{}")
    url = store.url_to_read("plan.json", 60)

    assert (httpx.put(url, content=b"forged").status_code, httpx.delete(url).status_code) == (403, 403)
    assert store.read("plan.json") == b"{}"


def test_exactly_one_of_several_concurrent_writers_of_a_commit_wins(store: S3Store) -> None:
    for attempt in range(10):
        key, start = f"rounds/{attempt}/result.json", Barrier(WRITERS)

        def write(data: bytes, key: str = key, start: Barrier = start) -> bool:
            start.wait()
            return store._put_if_absent(key, data)

        with ThreadPoolExecutor(WRITERS) as threads:
            won = list(threads.map(write, [bytes([writer]) for writer in range(WRITERS)]))

        assert sum(won) == 1, "the store does not honour If-None-Match"
        assert store.read(key) == bytes([won.index(True)])


def test_a_committed_object_is_not_overwritten(store: S3Store) -> None:
    assert store.create("result.json", b"first")
    assert not store.create("result.json", b"second")
    assert store.read("result.json") == b"first"
