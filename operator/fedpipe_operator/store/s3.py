"""The store as a bucket of any S3 endpoint. The only file that imports boto3.

Set up for stores that only resemble S3: path-style addresses, signature version 4, and no checksum headers
but where the protocol requires them (the newer defaults are refused by many).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.store.keys import checked_key, checked_prefix, is_whole, is_within
from fedpipe_operator.store.s3_errors import ABSENT, BEYOND_THE_END, CONDITION_UNKNOWN, TAKEN, code_of, translated_faults

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

_CONFIG = Config(
    signature_version="s3v4",
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    retries={"mode": "standard"},
    connect_timeout=5,
    read_timeout=60,
)

_PARTS = TransferConfig(multipart_threshold=16 * 2**20, multipart_chunksize=16 * 2**20, max_concurrency=4)


@dataclass(frozen=True)
class Credentials:
    """A key pair for the bucket. The secret stays out of logs."""

    access_key: str
    secret_key: str = field(repr=False)


def _client(endpoint: str | None, region: str, credentials: Credentials | None) -> "S3Client":
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=credentials.access_key if credentials else None,
        aws_secret_access_key=credentials.secret_key if credentials else None,
        config=_CONFIG,
    )


_shared_client = lru_cache(maxsize=64)(_client)
"""Runs with the same endpoint and key pair share a client, which takes megabytes; it is safe for several threads."""


@dataclass(frozen=True)
class ObjectReader:
    """One object of a bucket, a request for each range; all of them are of the same bytes."""

    store: "S3Store"
    key: str
    size: int
    etag: str

    def read(self, offset: int, length: int) -> bytes:
        """The `length` bytes from `offset` on; fewer only where the object ends.

        Raises:
            TransientError: `ObjectChanged`: somebody wrote the object after it was opened, so what was read of it is worth nothing.
        """
        data, etag = self.store.ranged(self.key, offset, max(0, min(length, self.size - offset)))
        if data and etag != self.etag:
            raise TransientError("ObjectChanged", f"{self.store.place}, {self.key}: it was written again while it was being read")
        return data


class S3Store:
    """The keys of `bucket` below `prefix`. Without credentials, boto3's own chain finds them. Safe for several threads."""

    def __init__(
        self, bucket: str, prefix: str, *, endpoint: str | None = None, region: str = "us-east-1", credentials: Credentials | None = None
    ) -> None:
        self.bucket = bucket
        self.prefix = checked_prefix(prefix)
        self.place = f"bucket {bucket} at {endpoint or 'AWS'}"
        with translated_faults(self.place):
            self._client = _shared_client(endpoint, region, credentials) if credentials else _client(endpoint, region, None)

    def read(self, key: str) -> bytes | None:
        """The whole object, or None when there is none."""
        with self._faults(key):
            try:
                return self._client.get_object(Bucket=self.bucket, Key=self._full(key))["Body"].read()
            except ClientError as error:
                if code_of(error) in ABSENT:
                    return None
                raise

    def size(self, key: str) -> int | None:
        """Bytes in the object, or None when there is none.

        By a listing: the answer to a HEAD has no body, so that a missing bucket would look like a missing object.
        """
        found = self._listed(key)
        return None if found is None else found["Size"]

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        return self.ranged(key, offset, length)[0]

    def ranged(self, key: str, offset: int, length: int) -> tuple[bytes, str]:
        """Exactly `length` bytes from `offset`, and the ETag of the object they are of."""
        if length == 0:
            return b"", ""  # HTTP has no empty range
        data, etag = b"", ""
        with self._faults(key):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._full(key), Range=f"bytes={offset}-{offset + length - 1}")
                data, etag = answer["Body"].read(), answer.get("ETag", "")
            except ClientError as error:
                if code_of(error) not in BEYOND_THE_END:
                    raise
        if len(data) != length:
            raise UserError("ObjectTooShort", f"{self.place}, {key}: {length} bytes were asked for at {offset}, {len(data)} came")
        return data, etag

    @contextmanager
    def open_reader(self, key: str) -> Iterator[ObjectReader]:
        """The object for reading by ranges."""
        found = self._listed(key)
        if found is None:
            raise UserError("ObjectMissing", f"{self.place}, {key}: it is not, or no longer, in the store")
        yield ObjectReader(self, key, found["Size"], found["ETag"])

    def write(self, key: str, data: bytes) -> None:
        """Write the object whole."""
        with self._faults(key):
            self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data)

    def write_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streamed; in parts when it is large."""
        with path.open("rb") as file, self._faults(key):
            self._client.upload_fileobj(file, self.bucket, self._full(key), Config=_PARTS)

    def create(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists; whether this call wrote it.

        `If-None-Match: *` decides where the store honours it. Some stores ignore it and some refuse it, so we look
        before and read back after: of two writers a moment apart the first wins there too, and of two at the same
        moment the one that was overwritten before it looked learns so. What remains is a window of one request, in
        which both may believe to have won; the operator is a single writer by its deployment.
        """
        if self.size(key) is not None or not self._put_if_absent(key, data):
            return False
        return self.read(key) == data

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of the object `prefix` and of everything in the folder of that name, page by page."""
        return sorted(self.etags(prefix))

    def etags(self, prefix: str = "") -> dict[str, str]:
        """What `list(prefix)` names, each key with a text that changes when the object does."""
        wanted = checked_prefix(prefix)
        with self._faults(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._below(wanted))
            found = {item["Key"][len(self._below("")) :]: item["ETag"] for page in pages for item in page.get("Contents", [])}
        return {key: etag for key, etag in found.items() if is_within(key, wanted) and is_whole(key)}

    def delete(self, prefix: str) -> None:
        """Delete what `list(prefix)` names, one by one: the batch request needs a checksum that not all stores take."""
        for key in self.list(prefix):
            with self._faults(key):
                self._client.delete_object(Bucket=self.bucket, Key=self._full(key))

    def url_to_read(self, key: str, seconds: int) -> str:
        """A presigned URL for GET of this one object."""
        return self._presigned("get_object", key, seconds)

    def url_to_write(self, key: str, seconds: int) -> str:
        """A presigned URL for PUT of this one object."""
        return self._presigned("put_object", key, seconds)

    def _listed(self, key: str) -> "ObjectTypeDef | None":
        """The object's entry in the bucket's listing; None if it has none."""
        full = self._full(key)
        with self._faults(key):
            found = self._client.list_objects_v2(Bucket=self.bucket, Prefix=full, MaxKeys=1).get("Contents", [])
        return next((item for item in found if item["Key"] == full), None)

    def _presigned(self, method: str, key: str, seconds: int) -> str:
        with self._faults(key):
            return self._client.generate_presigned_url(method, Params={"Bucket": self.bucket, "Key": self._full(key)}, ExpiresIn=seconds)

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        with self._faults(key):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._full(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if code_of(error) in TAKEN:
                    return False
                if code_of(error) not in CONDITION_UNKNOWN:
                    raise
                self.write(key, data)
            return True

    def _below(self, prefix: str) -> str:
        """The full key of a prefix, which may be empty."""
        return f"{self.prefix}/{prefix}" if self.prefix else prefix

    def _full(self, key: str) -> str:
        return self._below(checked_key(key))

    def _faults(self, key: str) -> AbstractContextManager[None]:
        return translated_faults(f"{self.place}, {key or 'everything'}")
