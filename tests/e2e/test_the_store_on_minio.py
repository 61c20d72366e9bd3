"""`S3Store` on the documented store, MinIO: URLs that are good for one object, one verb and their time; one winner of a commit."""

import threading
import uuid
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
import pytest
from wards import store_at, store_credentials

from fedpipe_operator.errors import TellUser
from fedpipe_operator.store import Credentials, S3Store

pytestmark = pytest.mark.e2e


@pytest.fixture
def store(cluster: None) -> Iterator[S3Store]:
    """A folder of the cluster's bucket, of this test's own."""
    del cluster
    store = store_at(f"store-tests/{uuid.uuid4().hex}")
    yield store
    store.delete("")


def code_of(answer: httpx.Response) -> tuple[int, str]:
    """The status, and S3's own word for what is wrong."""
    return answer.status_code, answer.text.partition("<Code>")[2].partition("</Code>")[0]


def moved(url: str, key: str) -> str:
    """The same URL for another key."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rpartition("/")[0] + f"/{key}"))


def altered(url: str, **query: str) -> str:
    """The URL with other words in its query."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | query)))


def test_a_url_reads_its_object_and_one_writes_it(store: S3Store) -> None:
    assert httpx.put(store.url_to_write("a", 60), content=b"one").status_code == 200

    assert httpx.get(store.url_to_read("a", 60)).content == b"one"
    assert store.read("a") == b"one"


def test_a_url_is_refused_for_another_key_or_verb(store: S3Store) -> None:
    store.write("a", b"one")
    store.write("b", b"two")
    read, write = store.url_to_read("a", 60), store.url_to_write("a", 60)

    assert code_of(httpx.get(moved(read, "b"))) == (403, "SignatureDoesNotMatch")
    assert code_of(httpx.put(moved(write, "b"), content=b"stolen")) == (403, "SignatureDoesNotMatch")
    assert code_of(httpx.put(read, content=b"stolen")) == (403, "SignatureDoesNotMatch")
    assert code_of(httpx.delete(write)) == (403, "SignatureDoesNotMatch")
    assert (store.read("a"), store.read("b")) == (b"one", b"two")


def test_a_url_whose_time_is_up_is_refused_and_so_is_one_that_grants_itself_more(store: S3Store) -> None:
    store.write("a", b"one")
    url = altered(store.url_to_read("a", 1), **{"X-Amz-Date": "20200101T000000Z", "X-Amz-Expires": "604800"})
    long_gone = altered(store.url_to_read("a", 60), **{"X-Amz-Date": "20200101T000000Z"})

    assert code_of(httpx.get(url)) == (403, "AccessDenied")
    assert code_of(httpx.get(long_gone)) == (403, "AccessDenied")
    assert code_of(httpx.get(altered(store.url_to_read("a", 60), **{"X-Amz-Expires": "6000"}))) == (403, "SignatureDoesNotMatch")


def test_a_url_expires(store: S3Store) -> None:
    store.write("a", b"one")
    url = store.url_to_read("a", 1)

    until_refused = threading.Event()
    for _ in range(100):
        if httpx.get(url).status_code == 403:
            break
        until_refused.wait(0.1)
    assert code_of(httpx.get(url)) == (403, "AccessDenied")


def test_an_altered_signature_is_refused(store: S3Store) -> None:
    store.write("a", b"one")

    assert code_of(httpx.get(altered(store.url_to_read("a", 60), **{"X-Amz-Signature": "0" * 64}))) == (403, "SignatureDoesNotMatch")


def test_of_many_writers_of_one_commit_exactly_one_wins(store: S3Store) -> None:
    start, won = threading.Barrier(8), []

    def commit(number: int) -> None:
        start.wait()
        if store.create("manifest.json", f"writer {number}".encode()):
            won.append(number)

    writers = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert len(won) == 1
    assert store.read("manifest.json") == f"writer {won[0]}".encode()


def test_a_commit_that_is_there_stays(store: S3Store) -> None:
    assert store.create("manifest.json", b"first")
    assert not store.create("manifest.json", b"second")
    assert store.read("manifest.json") == b"first"


def test_wrong_keys_and_buckets_that_are_not_there_are_told_as_such(store: S3Store) -> None:
    endpoint = store.place.rpartition(" at ")[2]
    stranger = S3Store(store.bucket, "x", endpoint=endpoint, credentials=Credentials("nobody", "nothing"))

    with pytest.raises(TellUser, match="StoreDenied"):
        stranger.list()
    with pytest.raises(TellUser, match="BucketMissing"):
        S3Store("no-such-bucket", "x", endpoint=endpoint, credentials=store_credentials()).list()
