"""Requests to another HTTP server that a run's author names, a tracker: as guarded and as bounded as those to its store.

A client keeps its connections, so all of them were checked by one guard. Nothing is retried here, and no redirect is followed: an answer is
an answer, and where it leads may be somewhere that nobody allowed.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError, SSLError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.store.connections import (
    AddressRefusedError,
    BoundError,
    Call,
    Guard,
    TooSlowError,
    bind_session,
    bounded,
    send_bounded,
)
from fedpipe_operator.store.s3_errors import shown_words

SECONDS: Final = 20.0
"""For one request, until its answer is read."""
ANSWER_BYTES: Final = 4 * 2**20
"""The longest answer: that of a run which has a thousand figures has a quarter of it."""
_CERTIFICATES: Final = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""The chart sets both, to the same file; people who use MLflow's own client set the first."""


class Answer(NamedTuple):
    """What the server answered."""

    status: int
    body: bytes


@dataclass
class HttpServer:
    """A server, by the URL that all of its paths begin with; to be closed by `with`.

    Raises:
        UserError: `TrackerRefused`, the URL has no host.
    """

    url: str
    """Without a final slash."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of every request. They may be secret."""
    guard: Guard | None = None
    """None: any address may be connected to, as on one machine."""
    _session: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        certificates = next((file for name in _CERTIFICATES if (file := os.environ.get(name))), True)
        with _translated(self.url):
            proxies = get_environ_proxies(self.url)
        self._session = URLLib3Session(verify=certificates, proxies=proxies)  # type: ignore[arg-type]  # a path, too
        bind_session(self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def request(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> Answer:
        """The answer to this request.

        Args:
            method: of HTTP.
            path: behind the URL, with its query.
            body: at most a few MB.
            content_type: of the body.

        Raises:
            TransientError: `TrackerUnreachable`, `TrackerTooSlow`.
            UserError: `AddressRefused`, `TrackerRefused`.
        """
        headers = dict(self.headers) | ({"Content-Type": content_type} if body else {})
        request = AWSRequest(method, f"{self.url}{path}", headers, body).prepare()
        with _translated(self.url), bounded(Call(time.monotonic() + SECONDS, ANSWER_BYTES, self.guard)):
            answer = send_bounded(self._session, request)
            return Answer(answer.status_code, answer.content)


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except AddressRefusedError as error:
        raise UserError("AddressRefused", f"{url}: {error}; name the tracker by an address of its own") from error
    except TooSlowError as error:
        raise TransientError("TrackerTooSlow", f"{url} did not answer completely within {SECONDS:.0f} s; check the server") from error
    except BoundError as error:
        what = f"{url} answers more than {ANSWER_BYTES >> 20} MiB"
        raise UserError("TrackerRefused", f"{what}; correct the URL: is it the tracker's?") from error
    except SSLError as error:
        advice = "add its CA to the chart's caBundle"
        raise TransientError("TrackerUnreachable", f"{url}: its certificate is not trusted: {shown_words(str(error))}; {advice}") from error
    except (EndpointConnectionError, ConnectTimeoutError, HTTPClientError, BotoCoreError) as error:
        raise TransientError(
            "TrackerUnreachable", f"{url}: {shown_words(str(error))}; check its address and that the server is running"
        ) from error
    except ValueError as error:
        raise UserError("TrackerRefused", f"{url}: {shown_words(str(error))}; correct the URL") from error
