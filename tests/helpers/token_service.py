"""A token service (STS) that notes what it is asked for, and gives a session or an error as its test says."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qsl

_SESSION = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult>
<Credentials><AccessKeyId>key-{number}</AccessKeyId><SecretAccessKey>secret-{number}</SecretAccessKey>
<SessionToken>session-{number}</SessionToken><Expiration>{expiration}</Expiration></Credentials>
</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""
_ERROR = "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"


@dataclass
class TokenService:
    """The service; sessions are numbered from 1."""

    endpoint: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The fields of each request."""
    expiration: str = "1970-01-01T01:00:00Z"
    refusal: tuple[int, str, str] | None = None
    """HTTP status, code and message of the answer to every request; None: it gives sessions."""

    def answer(self, fields: dict[str, str]) -> tuple[int, str]:
        """Status and body."""
        self.asked.append(fields)
        if self.refusal is not None:
            status, code, message = self.refusal
            return status, _ERROR.format(code=code, message=message)
        return 200, _SESSION.format(number=len(self.asked), expiration=self.expiration)


@contextmanager
def running_token_service() -> Iterator[TokenService]:
    """A service on this machine."""
    service = TokenService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, text = service.answer(dict(parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode())))
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    service.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
