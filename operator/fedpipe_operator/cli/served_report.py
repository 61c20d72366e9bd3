"""Fetches a report that the operator serves: no key pair and no right but to `get` the run is needed."""

import os
import ssl
import urllib.error
import urllib.request
from typing import Final
from urllib.parse import urlsplit

from fedpipe_operator.errors import UserError

TOKEN: Final = "FEDPIPE_TOKEN"  # noqa: S105 -- the name of a variable
"""The environment variable with the caller's token: other users of a machine can read arguments."""
_SECONDS: Final = 60.0
_PAGE_BYTES: Final = 128 * 2**20
_MESSAGE_MAX: Final = 500
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token is sent to the server that was named, and to no other."""

    def redirect_request(self, *_: object) -> None:
        return None


def fetch(server: str, namespace: str, name: str) -> str:
    """The page of this run from the operator's server of reports.

    Args:
        server: its URL; https, but for this machine (a forwarded port).
        namespace: of the run.
        name: of the run.

    Raises:
        UserError: `TokenMissing`, `ServerInvalid`, `ReportRefused`, `ServerUnreachable`.
    """
    token = os.environ.get(TOKEN)
    if not token:
        create = f"kubectl create token ACCOUNT -n {namespace} --audience fedpipe.io/report"
        raise UserError("TokenMissing", f'{TOKEN} is not set: export {TOKEN}="$({create})", of a service account that may get the run')
    parts = urlsplit(server)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        raise UserError("ServerInvalid", f"--server {server}: a token is sent by https only, or to localhost: forward a port, or use TLS")
    request = urllib.request.Request(  # noqa: S310 -- of these two schemes
        f"{server.rstrip('/')}/{namespace}/{name}", headers={"Authorization": f"Bearer {token}"}
    )
    by_tls = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    direct = [urllib.request.ProxyHandler({})] if parts.scheme == "http" else []  # a proxy would read the token
    opener = urllib.request.build_opener(_NoRedirect, by_tls, *direct)
    try:
        with opener.open(request, timeout=_SECONDS) as answer:
            page: str = answer.read(_PAGE_BYTES).decode()
            return page
    except urllib.error.HTTPError as error:
        said = error.read(_MESSAGE_MAX).decode(errors="replace").strip()
        raise UserError("ReportRefused", f"{server} answers {error.code}: {said}") from error
    except OSError as error:
        raise UserError("ServerUnreachable", f"{server}: {error}: correct --server, or forward the port again") from error
