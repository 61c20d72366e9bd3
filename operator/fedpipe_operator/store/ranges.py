"""Reads a range of an object; after a cut connection, the rest of it. boto3 tries a request again, but not the reading of its answer."""

import logging
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError

from fedpipe_operator.errors import TransientError
from fedpipe_operator.store.s3_errors import BAD_RANGE, code_of

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

_CHUNK: Final = 2**16
"""What has not arrived as a whole is lost with the connection."""
_ATTEMPTS: Final = 3
"""In a row without a byte; each is several of boto3's. The deadline of the call bounds them all."""
_LOG: Final = logging.getLogger(__name__)


def read_range(client: "S3Client", bucket: str, key: str, offset: int, length: int) -> tuple[bytes, str]:
    """The `length` bytes from `offset` on, fewer where the object ends, and the ETag of the object.

    Raises:
        TransientError: `ObjectChanged`, the object was replaced between two requests.
        ClientError: the store refuses; and what else a call of the client raises, if no byte arrives any more.
    """
    found, etag, attempt = bytearray(), "", 0
    while True:
        before = len(found)
        try:
            response = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset + before}-{offset + length - 1}")
            if etag and response.get("ETag", "") != etag:
                raise TransientError("ObjectChanged", f"{key}: the object was replaced while it was being read")
            etag = response.get("ETag", "")
            _append(found, response["Body"], length)
        except (HTTPClientError, IncompleteReadError) as error:
            if len(found) >= length:
                return bytes(found), etag
            attempt = 1 if len(found) > before else attempt + 1
            if attempt >= _ATTEMPTS:
                raise
            _LOG.info("the rest of %s is read again after %d of %d bytes: %s", key, len(found), length, type(error).__name__)
            continue
        except ClientError as error:
            if code_of(error) not in BAD_RANGE:
                raise
        return bytes(found), etag


def _append(found: bytearray, body: "StreamingBody", length: int) -> None:
    """Up to one byte more than was asked for, by which a server is known that sends more: again and again, it would fill the memory."""
    while len(found) <= length and (chunk := body.read(min(_CHUNK, length + 1 - len(found)))):
        found += chunk
