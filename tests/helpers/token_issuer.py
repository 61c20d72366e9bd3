"""An OpenID provider on this machine, as an API server is one: it makes tokens of service accounts, and serves the key that checks them."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

SUBJECT: Final = "system:serviceaccount:fedpipe:fedpipe"
_KEY_ID: Final = "of-the-test"


@dataclass(frozen=True)
class Issuer:
    """The provider."""

    url: str
    key: rsa.RSAPrivateKey

    @property
    def configuration(self) -> str:
        """The URL of its discovery document."""
        return f"{self.url}/.well-known/openid-configuration"

    def token(self, audience: str, *, seconds: float = 3600, subject: str = SUBJECT) -> str:
        """A token (JWT, RS256) that is valid for so many seconds from now on."""
        now = int(time.time())
        claims = {"iss": self.url, "sub": subject, "aud": [audience], "iat": now - 60, "exp": now + int(seconds)}
        signed = ".".join(_encoded(part) for part in ({"alg": "RS256", "kid": _KEY_ID, "typ": "JWT"}, claims))
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64(signature)}"

    def document(self, path: str) -> dict[str, Any]:
        """What it serves: the discovery document, or its keys."""
        if path.endswith("/keys"):
            public = self.key.public_key().public_numbers()
            modulus, exponent = (_base64(number.to_bytes(size, "big")) for number, size in ((public.n, 256), (public.e, 3)))
            return {"keys": [{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": _KEY_ID, "n": modulus, "e": exponent}]}
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    """A provider on this machine, with a key of its own."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(issuer.document(self.path)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(f"http://127.0.0.1:{server.server_port}", key)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()


def _encoded(part: dict[str, Any]) -> str:
    return _base64(json.dumps(part).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
