"""What every request to a store has in common: time limits, retries, and which answers are worth another attempt.

A presigned URL is a credential: its query is never logged or reported.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx

from fedpipe_trainer.contract import FailureReason, PostForm, Upload
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.presigned import error_code

CHUNK: Final = 1 << 20
ATTEMPTS: Final = 9
"""Together with the pauses between them: a store may be unavailable for a minute without a site losing its round."""
TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
OK: Final = range(200, 300)
NO_COMPRESSION: Final = {"Accept-Encoding": "identity"}
NOT_FOUND: Final = 404
FORBIDDEN: Final = 403
LONGEST_ERROR: Final = 1 << 16
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 20.0
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERRORS: Final = range(500, 600)
_HINTS: Final = {
    FORBIDDEN: ": the presigned URL has expired or does not allow this, or there is no such object",
    NOT_FOUND: ": no such bucket or object",
}
_CODE_HINTS: Final = {"EntityTooLarge": ": the file is larger than the task allows"}
_TRANSIENT_CODES: Final = ("BadDigest", "RequestTimeout")
"""Of answers that are errors of the sender by their status: bytes were lost or changed on their way."""

_LOG = logging.getLogger(__name__)

# These libraries log the full URL of every request, including the signature.
for name in ("httpx", "httpcore"):
    logging.getLogger(name).setLevel(logging.WARNING)

Sleep = Callable[[float], None]
T = TypeVar("T")


class TransientError(Exception):
    """A failure after which another attempt may succeed."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.made_progress = False
        """Whether bytes arrived that the next attempt needs no more: then the attempts are counted anew."""


def without_query(url: str) -> str:
    """The URL without its query, which may contain a signature, and without user information, so that it can be shown."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def url_of(to: Upload) -> str:
    """The URL of the object that is written so, for messages."""
    return f"{to.url}/{to.fields.get('key', '')}" if isinstance(to, PostForm) else to


def retry(attempt: Callable[[], T], *, url: str, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep) -> T:
    """What `attempt` returns, called at most so many times in a row without progress, with growing pauses.

    Raises:
        TaskFailed: TransferFailed, the last attempt failed, too; and what `attempt` raises, but TransientError.
    """
    number = 0
    while True:
        try:
            return attempt()
        except TransientError as error:
            number = 1 if error.made_progress else number + 1
            if number >= attempts:
                times = f", {attempts} times in a row" if attempts > 1 else ""
                raise transfer_failed(f"{without_query(url)}: {error}{times}") from error
            seconds = min(max(_FIRST_PAUSE_SECONDS * 2 ** (number - 1), error.retry_after), _LONGEST_PAUSE_SECONDS)
            _LOG.warning("%s: %s; retrying in %.1f s", without_query(url), error, seconds)
            sleep(seconds)


@contextmanager
def translate_transport_errors() -> Iterator[None]:
    """Raise errors of the network connection as transient errors."""
    try:
        yield
    except httpx.TransportError as error:
        raise TransientError(f"{type(error).__name__} ({error})" if str(error) else type(error).__name__) from error


def read_error_code(response: httpx.Response) -> str:
    """The S3 error code of the response, "" if it succeeded. The rest of its body is not reported, since it may quote the signature."""
    return "" if response.status_code in OK else error_code(next(response.iter_raw(LONGEST_ERROR), b""))


def check_status(response: httpx.Response, url: str, code: str) -> None:
    """Raise if the response is an error, which has this S3 code.

    Raises:
        TransientError: another attempt may succeed.
        TaskFailed: TransferFailed, none will.
    """
    status = response.status_code
    if status in OK:
        return
    message = f"the store answered {status} {response.reason_phrase}".rstrip() + (f" ({code})" if code else "")
    if status == _TOO_MANY_REQUESTS or status in _SERVER_ERRORS or code in _TRANSIENT_CODES:
        raise TransientError(message, retry_after=_retry_after(response))
    raise transfer_failed(f"{without_query(url)}: {message}{_CODE_HINTS.get(code) or _HINTS.get(status, '')}")


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def transfer_failed(message: str) -> TaskFailed:
    """The failure of a transfer."""
    return TaskFailed(FailureReason.TRANSFER_FAILED, message)
