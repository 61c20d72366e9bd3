"""An S3 server of forms alone, which keeps to a form's policy as MinIO and AWS do, or fails to in one way."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.parser import BytesParser
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from serving import serving

SECRET = "a-secret-of-the-tests"  # noqa: S105 -- of this server
_DENIED, _TOO_LARGE = (403, "AccessDenied"), (400, "EntityTooLarge")


class Kind(Enum):
    """What the server does with a form."""

    BINDS_SIZES = "binds sizes"
    IGNORES_SIZES = "ignores sizes"
    HAS_NO_FORMS = "has no forms"
    KNOWS_NO_POST = "knows no POST"


class Form(NamedTuple):
    """What a request of the kind multipart/form-data has."""

    fields: dict[str, str]
    """In lower case, without the file's."""
    content: bytes
    is_last: bool
    """Whether the file is the last part."""


class FormServer(ThreadingHTTPServer):
    """Objects by key, and the requests in order."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kind = kind
        self.statuses: list[int] = []
        """Of the next answers, in place of what the server would do."""
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.deletes = True
        """Whether the key pair may delete."""

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.server_port}"

    def problem(self, form: Form) -> tuple[int, str] | None:
        """Status and code of the refusal of a form; None if it is taken."""
        if self.kind is Kind.HAS_NO_FORMS:
            return 405, "MethodNotAllowed"
        if self.kind is Kind.KNOWS_NO_POST:
            return 501, "NotImplemented"
        policy = json.loads(base64.b64decode(form.fields["policy"]))
        if not form.is_last or form.fields["x-amz-signature"] != _signature(form.fields) or _is_over(policy) or not _keeps_to(policy, form):
            return _DENIED
        most = next(one[2] for one in policy["conditions"] if isinstance(one, list) and one[0] == "content-length-range")
        return _TOO_LARGE if len(form.content) > most and self.kind is Kind.BINDS_SIZES else None


@contextmanager
def form_server(kind: Kind = Kind.BINDS_SIZES) -> Iterator[FormServer]:
    """The server, running."""
    with FormServer(kind) as server, serving(server):
        yield server


def _signature(fields: dict[str, str]) -> str:
    """As signature version 4 makes it of a policy."""
    key = f"AWS4{SECRET}".encode()
    for part in fields["x-amz-credential"].split("/")[1:]:
        key = hmac.digest(key, part.encode(), hashlib.sha256)
    return hmac.new(key, fields["policy"].encode(), hashlib.sha256).hexdigest()


def _is_over(policy: Any) -> bool:
    return datetime.fromisoformat(policy["expiration"]) < datetime.now(UTC)


def _keeps_to(policy: Any, form: Form) -> bool:
    """Whether every field has the value that the policy names."""
    named = {name.lower(): value for one in policy["conditions"] if isinstance(one, dict) for name, value in one.items()}
    given = {name: value for name, value in form.fields.items() if name not in ("policy", "x-amz-signature")}
    return given == {name: value for name, value in named.items() if name != "bucket"}


class _Handler(BaseHTTPRequestHandler):
    server: FormServer

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the line was cut; what has arrived of an object is no object, and the next attempt may be here already
            self.close_connection = True
            return
        form = _form(self.headers["Content-Type"], body)
        self.server.requests.append(f"POST {form.fields['key']}")
        status, code = self._forced() or self.server.problem(form) or (204, "")
        if not code:
            self.server.objects[form.fields["key"]] = form.content
        self._answer(status, code)

    def do_DELETE(self) -> None:
        key = self.path.partition("/fedpipe/")[2]
        self.server.requests.append(f"DELETE {key}")
        if self.server.deletes:
            self.server.objects.pop(key, None)
        self._answer(*((204, "") if self.server.deletes else _DENIED))

    def _forced(self) -> tuple[int, str] | None:
        return (self.server.statuses.pop(0), "SlowDown") if self.server.statuses else None

    def _answer(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code></Error>".encode() if code else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log."""


def _form(content_type: str, body: bytes) -> Form:
    message = BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    parts = [(part.get_param("name", header="Content-Disposition"), part.get_payload(decode=True)) for part in message.get_payload()]  # type: ignore[union-attr]
    fields = {str(name).lower(): content.decode() for name, content in parts if name != "file" and isinstance(content, bytes)}
    name, content = parts[-1]
    return Form(fields, content if isinstance(content, bytes) else b"", is_last=name == "file")
