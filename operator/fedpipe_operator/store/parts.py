"""Presigned uploads in parts (S3's multipart upload). Each URL binds the object, the upload and the number of the part.

An upload that was begun is gone on with, also by a later attempt: so to begin it twice is safe, and no part is sent twice. No listing
of objects shows parts, and they stay in the store until the upload is finished or aborted.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError

from fedpipe_operator.store.s3_errors import code_of
from fedpipe_trainer.contract import PartsUpload

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_LOG: Final = logging.getLogger(__name__)
_UNSUPPORTED: Final = frozenset({"NotImplemented", "MethodNotAllowed", "InvalidRequest", "501", "405", "404"})
_DENIED: Final = frozenset({"AccessDenied", "403"})
_GONE: Final = frozenset({"NoSuchUpload"})


def begin_upload(client: "S3Client", bucket: str, key: str, known: str) -> str | None:
    """The id of the upload in parts of this key: of the one that was begun last, or of a new one. None if the store has none.

    Args:
        client: of the store.
        bucket: its bucket.
        key: of the object.
        known: the id of the upload that was begun last, empty if there was none: a key pair that opens its own folder alone may not list
            the uploads of the bucket.

    Raises:
        ClientError: the store has a fault of its own, or denies to write.
    """
    if found := _open_uploads(client, bucket, key):
        return found[-1]
    if known and _is_open(client, bucket, key, known):
        return known
    try:
        return client.create_multipart_upload(Bucket=bucket, Key=key).get("UploadId") or None
    except ClientError as error:
        if code_of(error) in _UNSUPPORTED:
            return None
        raise


def presigned_parts(url: Callable[..., str], upload: str, *, size: int, part_bytes: int) -> PartsUpload:
    """The URLs to upload a file of at most `size` bytes; `url` signs one for a method of the client and its parameters beside the key."""
    count = max(1, -(-size // part_bytes))
    return PartsUpload(
        part_bytes=part_bytes,
        parts=tuple(url("upload_part", UploadId=upload, PartNumber=number) for number in range(1, count + 1)),
        listing=url("list_parts", UploadId=upload),
        finish=url("complete_multipart_upload", UploadId=upload),
        object=url("get_object"),
    )


def abort_uploads(client: "S3Client", bucket: str, key: str, known: str) -> None:
    """Abort every upload in parts of this key, of which `known` is one if it is not empty. Where the key pair may not, the log says so.

    Raises:
        ClientError: the store has a fault of its own.
    """
    try:
        for upload in {*_open_uploads(client, bucket, key), *filter(None, (known,))}:
            _abort(client, bucket, key, upload)
    except ClientError as error:
        if code_of(error) not in _DENIED:
            raise
        _LOG.warning("unfinished uploads of %s stay in the bucket %s: allow s3:AbortMultipartUpload, or have a lifecycle rule", key, bucket)


def _is_open(client: "S3Client", bucket: str, key: str, upload: str) -> bool:
    """Whether the upload was neither finished nor aborted; False also where the key pair may not ask."""
    try:
        client.list_parts(Bucket=bucket, Key=key, UploadId=upload, MaxParts=1)
    except ClientError as error:
        if code_of(error) not in _GONE | _DENIED:
            raise
        return False
    return True


def _abort(client: "S3Client", bucket: str, key: str, upload: str) -> None:
    try:
        client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    except ClientError as error:
        if code_of(error) not in _GONE:
            raise


def _open_uploads(client: "S3Client", bucket: str, key: str) -> list[str]:
    """The ids of the uploads of this key that were begun and are not finished, in the order in which they were begun."""
    try:
        found = client.list_multipart_uploads(Bucket=bucket, Prefix=key).get("Uploads", [])
    except ClientError as error:
        if code_of(error) in _UNSUPPORTED | _DENIED:
            return []
        raise
    own = [one for one in found if one.get("Key") == key and one.get("UploadId")]
    return [one["UploadId"] for one in sorted(own, key=lambda one: (str(one.get("Initiated", "")), one["UploadId"]))]
