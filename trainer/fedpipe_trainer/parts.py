"""Uploads a file in parts, which S3 calls a multipart upload: any size, and after a cut connection only the part under way is sent again.

A part is sent with its MD5, so the store refuses what was changed on its way. Which parts have arrived is asked of the store, so an upload
goes on where an earlier attempt, or a pod that is gone, has left it. The parts become the object by the last request, at once.
"""

import hashlib
import logging
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET

import httpx

from fedpipe_trainer.contract import PartsUpload
from fedpipe_trainer.presigned import error_code
from fedpipe_trainer.store_requests import (
    CHUNK,
    FORBIDDEN,
    LONGEST_ERROR,
    NO_COMPRESSION,
    NOT_FOUND,
    OK,
    TIMEOUT,
    Sleep,
    TransientError,
    check_status,
    read_error_code,
    retry,
    transfer_failed,
    translate_transport_errors,
    without_query,
)

_LONGEST_LIST: Final = 1 << 24
_LOG: Final = logging.getLogger(__name__)


class _Part(NamedTuple):
    """A range of the file."""

    number: int
    """From 1."""
    offset: int
    size: int


class _Gone(Exception):  # noqa: N818 -- no error: the upload was finished by an earlier attempt, or aborted
    """The store knows the upload no more."""


def send_parts(path: Path, to: PartsUpload, *, attempts: int, sleep: Sleep = time.sleep) -> int:
    """Upload the file; the bytes of the parts that were sent, without those that had arrived before.

    Raises:
        TaskFailed: TransferFailed, the store refuses a request or is unreachable, or the file has more parts than the task has URLs.
    """
    parts = _parts_of(path.stat().st_size, to.part_bytes)
    if len(parts) > len(to.parts):
        found = f"{path.name} has {len(parts)} parts of {to.part_bytes} bytes, and the task has URLs for {len(to.parts)}"
        raise transfer_failed(f"{found}: the base or the trainer image has changed since the dry export")
    with ThreadPoolExecutor(1) as hashing:  # the next part's while this one is sent
        try:
            digests = hashing.map(partial(_md5_of, path), parts)
            return _send(path, to, zip(parts, digests, strict=True), attempts=attempts, sleep=sleep)
        finally:
            hashing.shutdown(cancel_futures=True)


def _send(path: Path, to: PartsUpload, parts: Iterator[tuple[_Part, bytes]], *, attempts: int, sleep: Sleep) -> int:
    again = partial(retry, attempts=attempts, sleep=sleep)
    try:
        arrived = again(lambda: _arrived(to.listing), url=to.listing)
    except _Gone:
        _require_object(to, b"".join(digest for _, digest in parts), again)
        return 0
    etags, digests, sent = [], [], 0
    for part, digest in parts:
        digests.append(digest)
        etag, size = arrived.get(part.number, ("", -1))
        if (etag.strip('"'), size) != (digest.hex(), part.size):
            url = to.parts[part.number - 1]
            etag = again(partial(_put, path, part, digest, url), url=url)
            sent += part.size
        etags.append(etag)
    try:
        again(lambda: _finish(to.finish, etags), url=to.finish)
    except _Gone:  # an earlier request finished it, and its answer was lost
        _require_object(to, b"".join(digests), again)
    return sent


def _parts_of(size: int, part_bytes: int) -> list[_Part]:
    """The parts of a file; one that is empty if the file is."""
    offsets = range(0, max(size, 1), part_bytes)
    return [_Part(number, offset, min(part_bytes, size - offset)) for number, offset in enumerate(offsets, start=1)]


def _chunks(path: Path, part: _Part) -> Iterator[bytes]:
    left = part.size
    with path.open("rb") as file:
        file.seek(part.offset)
        while left and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


def _md5_of(path: Path, part: _Part) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in _chunks(path, part):
        digest.update(chunk)
    return digest.digest()


def _arrived(url: str) -> dict[int, tuple[str, int]]:
    """ETag and size by number of the parts that the store has; none where the key pair that signed the URL may not list them."""
    with translate_transport_errors(), httpx.stream("GET", url, headers=NO_COMPRESSION, timeout=TIMEOUT) as response:
        if response.status_code == FORBIDDEN:
            _LOG.warning("%s: the key pair of the run's store lacks s3:ListMultipartUploadParts; all parts are sent", without_query(url))
            return {}
        _check(response, url)
        body = b"".join(response.iter_raw(CHUNK))[:_LONGEST_LIST]
    try:
        found = [one for one in ET.fromstring(body) if one.tag.endswith("}Part") or one.tag == "Part"]  # noqa: S314 -- the run's store
        texts = [{child.tag.rpartition("}")[2]: child.text or "" for child in one} for one in found]
        return {int(one["PartNumber"]): (one["ETag"], int(one["Size"])) for one in texts}
    except (ET.ParseError, KeyError, ValueError):
        _LOG.warning("%s: the store's list of parts cannot be read; all are sent", without_query(url))
        return {}


def _put(path: Path, part: _Part, digest: bytes, url: str) -> str:
    """Send a part; its ETag."""
    headers = {"Content-Length": str(part.size), "Content-MD5": b64encode(digest).decode()}
    with (
        translate_transport_errors(),
        httpx.stream("PUT", url, content=_chunks(path, part), headers=headers, timeout=TIMEOUT) as response,
    ):
        check_status(response, url, read_error_code(response))
        etag: str = response.headers.get("ETag", "")
    if not etag:
        raise TransientError("the store answered without an ETag")
    return etag


def _finish(url: str, etags: list[str]) -> None:
    """Have the store make the parts one object. It may answer 200 and then, in the body, with an error."""
    listed = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>" for number, etag in enumerate(etags, start=1))
    body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    headers = {**NO_COMPRESSION, "Content-Type": "application/xml"}
    with translate_transport_errors(), httpx.stream("POST", url, content=body, headers=headers, timeout=None) as response:  # noqa: S113 -- minutes for a large object; the task has a deadline
        _check(response, url)
        answer = b"".join(response.iter_raw(CHUNK))[:LONGEST_ERROR]
    if code := error_code(answer):
        raise TransientError(f"the store could not put the parts together ({code})")


def _require_object(to: PartsUpload, digests: bytes, again: "partial[None]") -> None:
    """Check that the object is there and is made of these parts.

    Raises:
        TaskFailed: TransferFailed, it is not: the upload was aborted.
    """
    expected = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(digests) // 16}"

    def check() -> None:
        with translate_transport_errors(), httpx.stream("GET", to.object, headers={"Range": "bytes=0-0"}, timeout=TIMEOUT) as response:
            check_status(response, to.object, read_error_code(response))
            found = response.headers.get("ETag", "").strip('"')
        if found != expected:
            raise transfer_failed(f"{without_query(to.object)}: the upload in parts was ended by somebody else: start the export again")

    again(check, url=to.object)


def _check(response: httpx.Response, url: str) -> None:
    if response.status_code in OK:
        return
    code = read_error_code(response)
    if response.status_code == NOT_FOUND and code == "NoSuchUpload":
        raise _Gone
    check_status(response, url, code)
