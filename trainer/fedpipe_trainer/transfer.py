"""Downloads and uploads objects by URL or form, streamed and hashed. Of the trainer, only it, `parts` and `pieces` access the store.

A task's URLs are `file://` (a directory store) or `http(s)://` (presigned for one object and one HTTP method). A presigned
URL is a credential: its query is never logged or reported, and nor are the fields of a form. Readers of a store never see a partial
object: a file is written under a temporary name in the same folder and then renamed, and an HTTP PUT or POST is atomic.
"""

import hashlib
import logging
import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

import httpx

from fedpipe_trainer.atomic_file import atomic_file
from fedpipe_trainer.contract import Artifact, PartsUpload, PiecesUpload, PostForm, Upload
from fedpipe_trainer.parts import send_parts
from fedpipe_trainer.pieces import send_pieces
from fedpipe_trainer.presigned import may_be_missing
from fedpipe_trainer.store_requests import (
    ATTEMPTS,
    CHUNK,
    FORBIDDEN,
    NO_COMPRESSION,
    NOT_FOUND,
    TIMEOUT,
    Sleep,
    TransientError,
    check_status,
    read_error_code,
    retry,
    transfer_failed,
    translate_transport_errors,
    url_of,
    without_query,
)

__all__ = ["ATTEMPTS", "describe", "read_range", "receive", "send", "without_query"]

_PARTIAL: Final = 206
_CHANGED: Final = frozenset({412, 416})
"""The object was replaced, or is shorter now."""
_RANGE: Final = re.compile(r"bytes (\d+)-")

_LOG = logging.getLogger(__name__)


class _SourceError(Exception):
    """A file that is to be copied cannot be read."""


class _MissingError(Exception):
    """There is no object."""


def receive(  # noqa: PLR0913 - all but the first two are options
    url: str, to: Path, *, sha256: str | None = None, optional: bool = False, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep
) -> int | None:
    """Download the object at `url` into the file `to`; its size in bytes, or None if it does not exist.

    After a cut connection the next attempt asks for the rest; attempts are counted anew whenever bytes arrived.

    Args:
        url: URL of the object.
        to: the file to write.
        sha256: the hash that the object must have.
        optional: the object may be missing, so a 403 from a store that does not reveal missing objects counts as missing.
        attempts: how often the download is tried.
        sleep: called with the seconds to wait before another attempt.

    Raises:
        TaskFailed: TransferFailed, the store refuses the request, is unreachable, or the object does not have the hash `sha256`.
    """
    try:
        if urlsplit(url).scheme == "file":
            received = _get_file(url, to)
        else:
            received = _get_http(url, to, optional=optional, attempts=attempts, sleep=sleep)
    except OSError as error:
        raise transfer_failed(f"cannot copy {without_query(url)} to {to}: {error.strerror}") from error
    if received is None:
        return None
    size, digest = received
    if sha256 is not None and digest != sha256:
        to.unlink()
        raise transfer_failed(f"{without_query(url)} has SHA-256 {digest}, the task says {sha256}: the object was changed or truncated")
    return size


def send(
    path: Path,
    to: Upload | PartsUpload | PiecesUpload,
    *,
    attempts: int = ATTEMPTS,
    sleep: Sleep = time.sleep,
    known: Artifact | None = None,
) -> Artifact:
    """Upload the file `path` by URL or form, in parts or in pieces, replacing an existing object; the artifact for the result.

    Args:
        path: the file.
        to: where to.
        attempts: how often it is tried in a row; of an upload in parts or pieces each of these.
        sleep: called with the seconds to wait before another attempt.
        known: the artifact, if the caller has computed it already.

    Raises:
        TaskFailed: TransferFailed, the store refuses the request, is full, or is unreachable.
    """
    artifact = known or describe(path)
    if isinstance(to, PartsUpload):
        send_parts(path, to, attempts=attempts, sleep=sleep)
        return artifact
    if isinstance(to, PiecesUpload):
        send_pieces(path, to, attempts=attempts, sleep=sleep)
        return artifact
    if isinstance(to, PostForm):
        write = partial(_post_http, path, to)
    else:
        write = partial(_put_file if urlsplit(to).scheme == "file" else _put_http, path, to)
    retry(write, url=url_of(to), attempts=attempts, sleep=sleep)
    return artifact


def read_range(url: str, offset: int, length: int, *, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep) -> bytes:
    """The `length` bytes of an object from `offset` on; fewer only where it ends.

    Raises:
        TaskFailed: TransferFailed, the object does not exist, the store refuses the request or is unreachable.
    """
    if urlsplit(url).scheme == "file":
        try:
            with _path(url).open("rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise transfer_failed(f"cannot read {_path(url)}: {error.strerror}") from error
    return retry(partial(_range_http, url, offset, length), url=url, attempts=attempts, sleep=sleep)


def _range_http(url: str, offset: int, length: int) -> bytes:
    headers = {**NO_COMPRESSION, "Range": f"bytes={offset}-{offset + length - 1}"}
    with translate_transport_errors(), httpx.stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        check_status(response, url, read_error_code(response))
        skipped = 0 if response.status_code == _PARTIAL else offset  # a store without ranges sends the whole object
        found = b""
        for chunk in response.iter_raw(CHUNK):
            found += chunk
            if len(found) >= skipped + length:
                break
        return found[skipped : skipped + length]


def describe(path: Path) -> Artifact:
    """Name, size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(name=path.name, size=path.stat().st_size, sha256=digest)


def _get_file(url: str, to: Path) -> tuple[int, str] | None:
    source = _path(url)
    try:
        return _save(_read(source), to)
    except _SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise transfer_failed(f"cannot read {source}: {error}") from error


def _read(source: Path) -> Iterator[bytes]:
    """The content of a file. Its errors are no OSErrors, which are those of the file that is written."""
    try:
        with source.open("rb") as file:
            yield from _chunks(file)
    except OSError as error:
        raise _SourceError(error.strerror) from error


def _get_http(url: str, to: Path, *, optional: bool, attempts: int, sleep: Sleep) -> tuple[int, str] | None:
    try:
        with atomic_file(to) as file:
            received = _Received(file)
            retry(lambda: received.go_on(url, optional=optional), url=url, attempts=attempts, sleep=sleep)
    except _MissingError:
        return None
    return received.size, received.digest.hexdigest()


class _Received:
    """What of an object is in the file by now."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest, self.etag = file, 0, hashlib.sha256(), ""
        self.most = 0
        """Bytes that were in the file at any time. To get as far once more is no progress: else a store whose objects have another ETag in
        each answer would be asked for ever."""

    def go_on(self, url: str, *, optional: bool) -> None:
        """Download what is missing; all of it if the object was replaced, or if the store has no ranges."""
        headers = {**NO_COMPRESSION, **({"Range": f"bytes={self.size}-", "If-Match": self.etag} if self.size and self.etag else {})}
        if not self.etag:
            self._begin_anew()
        with translate_transport_errors(), httpx.stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            if response.status_code in _CHANGED and self.size:
                self._begin_anew()
                raise TransientError("the object was replaced while it was downloaded")
            if response.status_code == NOT_FOUND:
                raise _MissingError
            code = read_error_code(response)
            if optional and response.status_code == FORBIDDEN and may_be_missing(url, code, response.headers.get("Date", "")):
                _LOG.info(
                    "%s: the store does not reveal whether the object exists (403, %s); it counts as missing", without_query(url), code
                )
                raise _MissingError
            check_status(response, url, code)
            if self.size and not self._continues(response):
                self._begin_anew()
            self.etag = response.headers.get("ETag", "")
            self._add(response)

    def _continues(self, response: httpx.Response) -> bool:
        found = _RANGE.match(response.headers.get("Content-Range", ""))
        return response.status_code == _PARTIAL and found is not None and int(found[1]) == self.size

    def _add(self, response: httpx.Response) -> None:
        try:
            with translate_transport_errors():
                for chunk in response.iter_raw():  # as it arrives: what waits for more would be lost with the connection
                    self.file.write(chunk)
                    self.digest.update(chunk)
                    self.size += len(chunk)
        except TransientError as error:
            error.made_progress = bool(self.etag) and self.size > self.most
            self.most = max(self.most, self.size)
            raise

    def _begin_anew(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.size, self.digest, self.etag = 0, hashlib.sha256(), ""


def _put_file(path: Path, url: str) -> None:
    target = _path(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as file, atomic_file(target) as copy:
            shutil.copyfileobj(file, copy, CHUNK)  # its hash is known
    except OSError as error:
        raise transfer_failed(f"cannot write {target}: {error.strerror}") from error


def _put_http(path: Path, url: str) -> None:
    # Without a length, httpx would use chunked transfer encoding; S3 requires the length, which the signature covers.
    length = {"Content-Length": str(path.stat().st_size)}
    with (
        translate_transport_errors(),
        path.open("rb") as file,
        httpx.stream("PUT", url, content=_chunks(file), headers=length, timeout=TIMEOUT) as response,
    ):
        check_status(response, url, read_error_code(response))


def _post_http(path: Path, form: PostForm) -> None:
    with (
        translate_transport_errors(),
        path.open("rb") as file,
        # httpx streams the file, whose length it asks first, and puts it behind the fields, as S3 requires.
        httpx.stream("POST", form.url, data=dict(form.fields), files={"file": (path.name, file)}, timeout=TIMEOUT) as response,
    ):
        check_status(response, url_of(form), read_error_code(response))


def _path(url: str) -> Path:
    return Path(unquote(urlsplit(url).path))


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _save(chunks: Iterator[bytes], to: Path) -> tuple[int, str]:
    """Write the chunks to the file `to` atomically; their size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with atomic_file(to) as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
