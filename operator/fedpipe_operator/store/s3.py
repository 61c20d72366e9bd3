"""The store as a bucket of any S3 endpoint. The only file that imports boto3.

Configured for S3-compatible stores: path-style addresses, signature version 4, and checksum headers only where the protocol
requires them (many stores refuse the newer defaults).
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
from fedpipe_operator.store.protocol import check_key, check_prefix, is_in_folder, is_object_key
from fedpipe_operator.store.s3_errors import BAD_RANGE, CONDITION_FAILED, CONDITION_UNSUPPORTED, NOT_FOUND, code_of, translate_s3_errors

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

_MULTIPART = TransferConfig(multipart_threshold=16 * 2**20, multipart_chunksize=16 * 2**20, max_concurrency=4)


@dataclass(frozen=True)
class Credentials:
    """A key pair for the bucket. `repr` hides the secret key."""

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
"""Runs with the same endpoint and key pair share a client: a client takes megabytes, and is thread-safe."""


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
    """The objects of `bucket` below `prefix`. Without `credentials`, boto3 finds them by its own rules. Thread-safe."""

    def __init__(
        self, bucket: str, prefix: str, *, endpoint: str | None = None, region: str = "us-east-1", credentials: Credentials | None = None
    ) -> None:
        self.bucket = bucket
        self.prefix = check_prefix(prefix)
        self.location = f"bucket {bucket} at {endpoint or 'AWS'}"
        with translate_s3_errors(self.location):
            self._client = _shared_client(endpoint, region, credentials) if credentials else _client(endpoint, region, None)

    def read(self, key: str) -> bytes | None:
        """The content of the object, or None if there is none."""
        with self._translate_errors(key):
            try:
                return self._client.get_object(Bucket=self.bucket, Key=self._full_key(key))["Body"].read()
            except ClientError as error:
                if code_of(error) in NOT_FOUND:
                    return None
                raise

    def size(self, key: str) -> int | None:
        """Size of the object in bytes, or None if there is none.

        Read from a listing: the response to HEAD has no body, so a missing bucket would look like a missing object.
        """
        entry = self._list_entry(key)
        return None if entry is None else entry["Size"]

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`."""
        return self.read_range_and_etag(key, offset, length)[0]

    def read_range_and_etag(self, key: str, offset: int, length: int) -> tuple[bytes, str]:
        """Exactly `length` bytes from `offset`, and the ETag of the object."""
        if length == 0:
            return b"", ""  # HTTP has no empty range
        data, etag = b"", ""
        with self._translate_errors(key):
            try:
                response = self._client.get_object(
                    Bucket=self.bucket, Key=self._full_key(key), Range=f"bytes={offset}-{offset + length - 1}"
                )
                data, etag = response["Body"].read(), response.get("ETag", "")
            except ClientError as error:
                if code_of(error) not in BAD_RANGE:
                    raise
        if len(data) != length:
            raise UserError("ObjectTooShort", f"{self.location}, {key}: requested {length} bytes at offset {offset}, received {len(data)}")
        return data, etag

    @contextmanager
    def open_reader(self, key: str) -> Iterator[ObjectReader]:
        """A reader of the object."""
        entry = self._list_entry(key)
        if entry is None:
            raise UserError("ObjectMissing", f"{self.location}, {key}: the object is not in the store")
        yield ObjectReader(self, key, entry["Size"], entry["ETag"])

    def write(self, key: str, data: bytes) -> None:
        """Write the object atomically."""
        with self._translate_errors(key):
            self._client.put_object(Bucket=self.bucket, Key=self._full_key(key), Body=data)

    def write_file(self, key: str, path: Path) -> None:
        """Write the object from a file, streamed; a large one in parts."""
        with path.open("rb") as file, self._translate_errors(key):
            self._client.upload_fileobj(file, self.bucket, self._full_key(key), Config=_MULTIPART)

    def create(self, key: str, data: bytes) -> bool:
        """Write the object unless it exists; whether this call wrote it.

        Where the store supports `If-None-Match: *`, it decides. Some stores ignore or refuse it, so this method also checks
        before the write and reads back after it: of two writers one after the other the first wins, and of two simultaneous
        writers the one that was overwritten before it read back learns it. A window of one request remains in which both
        may believe that they won; the operator is a single writer by its deployment.
        """
        if self.size(key) is not None or not self._put_if_absent(key, data):
            return False
        return self.read(key) == data

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys of the object `prefix` and of everything in the folder of that name, page by page."""
        return sorted(self.etags_and_sizes(prefix))

    def etags_and_sizes(self, prefix: str = "") -> dict[str, tuple[str, int]]:
        """The keys of `list(prefix)`, each with the ETag of its object, which changes when the object does, and its bytes."""
        folder = check_prefix(prefix)
        with self._translate_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._with_prefix(folder))
            entries = [entry for page in pages for entry in page.get("Contents", [])]
            found = {entry["Key"][len(self._with_prefix("")) :]: (entry["ETag"], entry["Size"]) for entry in entries}
        return {key: one for key, one in found.items() if is_in_folder(key, folder) and is_object_key(key)}

    def delete(self, prefix: str) -> None:
        """Delete the objects of `list(prefix)` one by one: the batch request needs a checksum that not all stores accept."""
        for key in self.list(prefix):
            with self._translate_errors(key):
                self._client.delete_object(Bucket=self.bucket, Key=self._full_key(key))

    def url_to_read(self, key: str, seconds: int) -> str:
        """A presigned URL for GET of this object."""
        return self._presign("get_object", key, seconds)

    def url_to_write(self, key: str, seconds: int) -> str:
        """A presigned URL for PUT of this object."""
        return self._presign("put_object", key, seconds)

    def _list_entry(self, key: str) -> "ObjectTypeDef | None":
        """The entry of the object in the bucket's listing, or None."""
        full = self._full_key(key)
        with self._translate_errors(key):
            entries = self._client.list_objects_v2(Bucket=self.bucket, Prefix=full, MaxKeys=1).get("Contents", [])
        return next((entry for entry in entries if entry["Key"] == full), None)

    def _presign(self, method: str, key: str, seconds: int) -> str:
        with self._translate_errors(key):
            return self._client.generate_presigned_url(
                method, Params={"Bucket": self.bucket, "Key": self._full_key(key)}, ExpiresIn=seconds
            )

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        with self._translate_errors(key):
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

    def _translate_errors(self, key: str) -> AbstractContextManager[None]:
        return translate_s3_errors(f"{self.location}, {key or 'all objects'}")
