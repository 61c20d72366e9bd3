"""The store as a bucket of any S3 endpoint. Beside `sts` the only file that imports boto3; `connections` bounds what its clients do.

Configured for S3-compatible stores: path-style addresses, signature version 4, and checksum headers only where the protocol
requires them (many stores refuse the newer defaults). The key pair is always given: boto3 is never left to find one, since what it
finds is the operator's own.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from s3transfer.manager import TransferManager

from fedpipe_operator import names, tracing
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.store.connections import ANSWER_BYTES, Call, ContextExecutor, Guard, TooLargeError, answer_bytes, bind, bounded
from fedpipe_operator.store.forms import binds_sizes, presigned_form
from fedpipe_operator.store.parts import abort_uploads, begin_upload, presigned_parts
from fedpipe_operator.store.protocol import check_key, check_prefix, is_in_folder, is_object_key
from fedpipe_operator.store.ranges import read_range
from fedpipe_operator.store.s3_errors import CONDITION_FAILED, CONDITION_UNSUPPORTED, NOT_FOUND, code_of, translate_s3_errors
from fedpipe_trainer.contract import PartsUpload, PostForm

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

_CONFIG = Config(
    signature_version="s3v4",
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    retries={"mode": "standard"},
)

_CHUNK: Final = 2**18
_LEAST_VALIDITY: Final = 60.0
"""Seconds: a URL of fewer would have expired before a pod starts."""
_UPLOAD_ID_BYTES: Final = 1024
"""Those of stores have a hundred or two."""
_REGION_HEADER: Final = "x-amz-bucket-region"
_MULTIPART: Final = TransferConfig(multipart_threshold=16 * 2**20, multipart_chunksize=16 * 2**20, max_concurrency=4)


@dataclass(frozen=True)
class Credentials:
    """A key pair for the bucket. `repr` hides the secrets."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(repr=False, default=None)
    expires_at: float | None = None
    """Unix seconds; None if the pair does not expire, or it is not known when."""


ACCESS_KEY, SECRET_KEY, SESSION_TOKEN = CREDENTIAL_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""The environment variables of a key pair. The token is optional: short-lived pairs have one."""


def credentials_in(environ: Mapping[str, str]) -> Credentials:
    """The key pair in these environment variables, and nowhere else: no profile, no metadata service, no web identity.

    Raises:
        UserError: `CredentialsMissing`, a variable is not set.
    """
    missing = [name for name in (ACCESS_KEY, SECRET_KEY) if not environ.get(name)]
    if missing:
        raise UserError("CredentialsMissing", f"the environment has no {' and no '.join(missing)}: set the key pair of the run's bucket")
    return Credentials(environ[ACCESS_KEY], environ[SECRET_KEY], environ.get(SESSION_TOKEN) or None)


@dataclass(frozen=True)
class Limits:
    """How much of the operator's time and memory one call of a store may take. The largest honest calls are far below."""

    seconds: float = 30.0
    """Until a call is done, with its retries; beside them, the time of its bytes."""
    listing_seconds: float = 90.0
    """Until a whole listing, or the deletion of a folder, is done."""
    bytes_per_second: float = 2**20
    """The slowest transfer of an object."""
    object_bytes: int = 32 * 2**20
    """Of an object that is read whole: the run's own JSON. Adapters are read by ranges."""
    keys: int = 250_000
    """Of a listing: a run of 1000 sites and 40 rounds has about as many."""
    pages: int = 2_500
    """Of a listing: honest pages have hundreds of keys."""
    listing_characters: int = 64 * 2**20
    """Of the keys and ETags of a listing: honest keys have a hundred or two."""
    listing_bytes: int = 2**20
    """Of the answers of a listing beside `entry_bytes` for each of its entries: more is no listing, however much of it is XML."""
    entry_bytes: int = 4096
    """Of an entry of a listing: a key of 1 KiB, which URL encoding triples, and what stores say of an object."""


_LIMITS: Final = Limits()


MAKING_CLIENTS: Final = threading.Lock()
"""boto3's session, which makes them, is not thread-safe."""


@lru_cache(maxsize=64)
def _client(endpoint: str | None, region: str, credentials: Credentials, guard: Guard | None) -> "S3Client":
    """Runs with the same endpoint and key pair share a client: a client takes megabytes, and is thread-safe.

    They share its connections too, so a client whose connections were checked has no others (`guard`).
    """
    del guard
    with MAKING_CLIENTS:
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.session_token,
            config=_CONFIG,
        )
    bind(client)
    return client


@dataclass(frozen=True)
class ObjectReader:
    """One object of a bucket, read with one request for each range. All ranges are of the same version of the object."""

    store: "S3Store"
    key: str
    size: int
    etag: str

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only where the object ends.

        Raises:
            TransientError: `ObjectChanged`, the object was replaced after it was opened, so the ranges do not fit together.
        """
        data, etag = self.store.read_range_and_etag(self.key, offset, max(0, min(length, self.size - offset)))
        if data and etag != self.etag:
            raise TransientError("ObjectChanged", f"{self.store.location}, {self.key}: the object was replaced while it was being read")
        return data


class S3Store:
    """The objects of `bucket` below `prefix`. Thread-safe.

    Every method is one call: it ends by a deadline, receives a bounded number of bytes, and connects to no address that `guard` refuses.
    """

    def __init__(  # noqa: PLR0913 -- where the bucket is, who asks for it, and what a call may cost
        self,
        bucket: str,
        prefix: str,
        *,
        credentials: Credentials,
        endpoint: str | None = None,
        trainer_endpoint: str | None = None,
        region: str = "us-east-1",
        guard: Guard | None = None,
        limits: Limits = _LIMITS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.bucket, self.region = bucket, region
        self.prefix = check_prefix(prefix)
        self.location = f"bucket {bucket} at {endpoint or 'AWS'}"
        self._guard, self._limits = guard, limits
        self._expires_at, self._clock = credentials.expires_at, clock
        self._has_forms: bool | None = None
        self._is_region_known = endpoint is not None
        """Other stores accept any region, or say in an error which one they want."""
        with translate_s3_errors(self.location):
            self._client = _client(endpoint, region, credentials, guard)
            self._signer = _client(trainer_endpoint or endpoint, region, credentials, guard)

    def read(self, key: str) -> bytes | None:
        """The content of the object, or None if there is none."""
        with self._call(key, receives=self._limits.object_bytes):
            try:
                return _content(self._client.get_object(Bucket=self.bucket, Key=self._full_key(key))["Body"])
            except ClientError as error:
                if code_of(error) in NOT_FOUND:
                    return None
                raise

    def read_start(self, key: str, at_most: int) -> bytes | None:
        """The object's first bytes; None if there is no object."""
        with self._call(key, transfers=at_most, receives=at_most):
            try:
                # Not by a range: an empty object has none, and servers differ in what they answer to one beyond the end.
                with closing(self._client.get_object(Bucket=self.bucket, Key=self._full_key(key))["Body"]) as body:
                    return body.read(at_most)
            except ClientError as error:
                if code_of(error) in NOT_FOUND:
                    return None
                raise

    def size(self, key: str) -> int | None:
        """Size of the object in bytes, or None if there is none.

        Read from a listing: the response to HEAD has no body, so a missing bucket would look like a missing object.
        """
        entry = self._list_entry(key)
        return None if entry is None else _size_and_etag(entry)[0]

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        return self.read_range_and_etag(key, offset, length)[0]

    def read_range_and_etag(self, key: str, offset: int, length: int) -> tuple[bytes, str]:
        """Exactly `length` bytes from `offset`, and the ETag of the object."""
        if length == 0:
            return b"", ""  # HTTP has no empty range
        with self._call(key, transfers=length, receives=length):
            data, etag = read_range(self._client, self.bucket, self._full_key(key), offset, length)
        if len(data) != length:
            raise UserError("ObjectTooShort", f"{self.location}, {key}: requested {length} bytes at offset {offset}, received {len(data)}")
        return data, etag

    @contextmanager
    def open_reader(self, key: str) -> Iterator[ObjectReader]:
        """A reader of the object."""
        entry = self._list_entry(key)
        if entry is None:
            raise UserError("ObjectMissing", f"{self.location}, {key}: the object is not in the store")
        yield ObjectReader(self, key, *_size_and_etag(entry))

    def write(self, key: str, data: bytes) -> None:
        """Write the object atomically."""
        with self._call(key, transfers=len(data)):
            self._client.put_object(Bucket=self.bucket, Key=self._full_key(key), Body=data)

    def write_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streamed; a large one in parts."""
        with (
            path.open("rb") as file,
            self._call(key, transfers=path.stat().st_size),
            TransferManager(self._client, _MULTIPART, executor_cls=ContextExecutor) as manager,
        ):
            manager.upload(file, self.bucket, self._full_key(key)).result()

    def create(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists; whether this call wrote it.

        Where the store supports `If-None-Match: *`, it decides. Some stores ignore or refuse it, so this method also checks
        before the write and reads back after it: of two writers one after the other the first wins, and of two simultaneous
        writers the one that was overwritten before it read back learns it. A window of one request remains in which both
        may believe that they won; the operator is a single writer by its deployment.
        """
        with self._call(key, transfers=2 * len(data)):
            if self.size(key) is not None or not self._put_if_absent(key, data):
                return False
            return self.read(key) == data

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of the object `prefix` and of everything in the folder of that name, page by page."""
        return sorted(self.etags_and_sizes(prefix))

    def etags_and_sizes(self, prefix: str = "") -> dict[str, tuple[str, int]]:
        """The keys of `list(prefix)`, each with the ETag of its object, which changes when the object does, and its bytes."""
        folder, root = check_prefix(prefix), len(self._with_prefix(""))
        with self._call(prefix, seconds=self._limits.listing_seconds):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._with_prefix(folder))
            listing = _Listing(self._limits)
            for page in pages:
                listing.add(page.get("Contents", []), answer_bytes())
        found = {key[root:]: one for key, one in listing.found.items()}
        return {key: one for key, one in found.items() if is_in_folder(key, folder) and is_object_key(key)}

    def delete(self, prefix: str) -> None:
        """Delete the objects of `list(prefix)` one by one: the batch request needs a checksum that not all stores accept."""
        with self._call(prefix, seconds=self._limits.listing_seconds):  # what is left at the deadline is deleted by the next attempt
            for key in self.list(prefix):
                self._client.delete_object(Bucket=self.bucket, Key=self._full_key(key))

    def url_to_read(self, key: str, seconds: int) -> str:
        """A presigned URL for GET of this object."""
        return self._presign("get_object", key, seconds)

    def url_to_write(self, key: str, seconds: int) -> str:
        """A presigned URL for PUT of this object."""
        return self._presign("put_object", key, seconds)

    def form_to_write(self, key: str, seconds: int, at_most: int) -> PostForm | None:
        """A presigned form for this object. Whether the store has forms that bind the size is tried once, at the first call."""
        with self._call(key):
            if self._has_forms is None:
                self._has_forms = binds_sizes(self._client, self.bucket, self._full_key(names.FORM_PROBE))
            if not self._has_forms:
                return None
        validity = self._validity(seconds)
        with self._call(key):
            return presigned_form(self._signer, self.bucket, self._full_key(key), seconds=validity, at_most=at_most)

    def parts_to_write(self, key: str, seconds: int, size: int, part_bytes: int) -> PartsUpload | None:
        """A presigned upload in parts of this object, begun or gone on with; None if the store has none."""
        validity, full, known = self._validity(seconds), self._full_key(key), self._known_upload(key)
        with self._call(key):
            upload = begin_upload(self._client, self.bucket, full, known)
            if upload is None:
                return None
            if upload != known:
                self.write(names.upload_record(key), upload.encode())
            return presigned_parts(partial(self._sign, full, validity), upload, size=size, part_bytes=part_bytes)

    def abort_uploads(self, key: str) -> None:
        """End the uploads in parts of this object that were begun and not finished."""
        known = self._known_upload(key)
        with self._call(key):
            abort_uploads(self._client, self.bucket, self._full_key(key), known)

    def _known_upload(self, key: str) -> str:
        """The id of the upload in parts that was begun last; empty if there was none, or somebody else wrote what is no id."""
        found = (self.read_start(names.upload_record(key), _UPLOAD_ID_BYTES) or b"").decode("ascii", "replace")
        return found if found.isascii() and found.isprintable() else ""

    def _list_entry(self, key: str) -> "ObjectTypeDef | None":
        """The entry of the object in the bucket's listing, or None."""
        full = self._full_key(key)
        with self._call(key):
            entries = self._client.list_objects_v2(Bucket=self.bucket, Prefix=full, MaxKeys=1).get("Contents", [])
        return next((entry for entry in entries if entry.get("Key") == full), None)

    def _presign(self, method: str, key: str, seconds: int) -> str:
        validity = self._validity(seconds)
        with self._call(key):
            return self._sign(self._full_key(key), validity, method)

    def _sign(self, full_key: str, validity: int, method: str, **parameters: object) -> str:
        of = {"Bucket": self.bucket, "Key": full_key, **parameters}
        return self._signer.generate_presigned_url(method, Params=of, ExpiresIn=validity)

    def _validity(self, seconds: int) -> int:
        """How long a URL is valid that is to be so for `seconds`: no longer than what signs it, and only in the bucket's own region.

        Raises:
            UserError: `CredentialsExpired`, `WrongRegion`.
        """
        self._require_region()
        left = math.inf if self._expires_at is None else self._expires_at - self._clock()
        if left < _LEAST_VALIDITY:
            raise UserError("CredentialsExpired", f"{self.location}: the key pair has expired, or does in a minute: renew it in its Secret")
        return int(min(seconds, left))

    def _require_region(self) -> None:
        """Ask AWS for the bucket's region, once: boto3 follows a bucket to its region by itself, and a trainer's plain request does not."""
        if self._is_region_known:
            return
        with self._call(""):
            headers = self._headers_of_bucket()
        found = headers.get(_REGION_HEADER, self.region)
        if found != self.region:
            raise UserError("WrongRegion", f"{self.location} is in the region {found}, and store.region is {self.region}: correct it")
        self._is_region_known = True

    def _headers_of_bucket(self) -> Mapping[str, str]:
        """AWS names the region of a bucket also to who may not ask for it, such as a pair that may list its own prefix only."""
        try:
            return self._client.head_bucket(Bucket=self.bucket)["ResponseMetadata"]["HTTPHeaders"]
        except ClientError as error:
            headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            if _REGION_HEADER not in headers:
                raise
            return headers

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        with self._call(key, transfers=len(data)):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._full_key(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if code_of(error) in CONDITION_FAILED:
                    return False
                if code_of(error) not in CONDITION_UNSUPPORTED:
                    raise
                self.write(key, data)
            return True

    def _with_prefix(self, key: str) -> str:
        """A key or folder of this store as a key of the bucket; "" is the folder of the store."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def _full_key(self, key: str) -> str:
        return self._with_prefix(check_key(key))

    @contextmanager
    def _call(self, key: str, *, seconds: float | None = None, transfers: int = 0, receives: int = 0) -> Iterator[None]:
        """Bound a call, and translate its errors.

        Args:
            key: what it is about.
            seconds: until it is done, beside the time of its bytes; None: `Limits.seconds`.
            transfers: bytes of objects, both ways.
            receives: of them, those that one answer brings.
        """
        allowed = (self._limits.seconds if seconds is None else seconds) + transfers / self._limits.bytes_per_second
        call = Call(time.monotonic() + allowed, ANSWER_BYTES + receives, self._guard)
        what = key or "all objects"
        with tracing.span("store", key=what, bucket=self.bucket), translate_s3_errors(f"{self.location}, {what}"), bounded(call):
            yield


@dataclass
class _Listing:
    """What a listing has brought so far."""

    limits: Limits
    found: dict[str, tuple[str, int]] = field(default_factory=dict)
    """ETag and bytes by key of the bucket."""
    pages: int = 0
    entries: int = 0
    """Without a key, or with one key again and again, they cost as much."""
    characters: int = 0
    received: int = 0
    """Bytes."""

    def add(self, page: "Sequence[ObjectTypeDef]", received: int) -> None:
        """Add a page, of whose answer so many bytes were received.

        Raises:
            TooLargeError: with it, the listing is more than any of a run.
        """
        for entry in page:
            size, etag = _size_and_etag(entry)
            key = entry.get("Key", "")
            self.found[key] = (etag, size)
            self.characters += len(key) + len(etag)
        self.pages, self.entries, self.received = self.pages + 1, self.entries + len(page), self.received + received
        limits = self.limits
        if self.pages > limits.pages or self.entries > limits.keys:
            raise TooLargeError(f"the listing has more than {limits.keys} keys or {limits.pages} pages")
        if self.characters > limits.listing_characters:
            raise TooLargeError(f"the keys and ETags of the listing have more than {limits.listing_characters} characters")
        if self.received > limits.listing_bytes + limits.entry_bytes * self.entries:
            raise TooLargeError(f"the listing has {self.received} bytes for {self.entries} keys")


def _content(body: "StreamingBody") -> bytes:
    """All of an object. By chunks: http.client would set aside as much memory as the server announces."""
    return b"".join(iter(lambda: body.read(_CHUNK), b""))


def _size_and_etag(entry: "ObjectTypeDef") -> tuple[int, str]:
    """Of an entry of a listing. A server that leaves one out gets the values of an empty object, whose content then differs."""
    return entry.get("Size", 0), entry.get("ETag", "")
