"""What a request gets: the report of a run, a form to sign in, or a sentence that says why not.

A caller names itself by a bearer token, in the header as programs send it, or in a cookie that the form set. Who may not `get` a run is not
told whether it exists. Nothing is changed by any request but the browser's own cookie.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs

from fedpipe_operator.errors import FedPipeError, TransientError
from fedpipe_operator.report_server import pages
from fedpipe_operator.report_server.drawing import Page
from fedpipe_operator.report_server.gate import Access

COOKIE: Final = "__Host-fedpipe-report"
"""A browser takes a cookie of such a name only over HTTPS or from localhost, and gives it to this host only."""
WAIT_SECONDS: Final = 20.0
"""How long a request waits for a report that is being drawn; a browser then asks again by itself."""

_WHERE: Final = "the report of a run is at /NAMESPACE/NAME"
_NAME: Final = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_PATH: Final = re.compile(rf"/(?P<namespace>{_NAME})/(?P<name>{_NAME})")
_SIGN_OUT: Final = "/sign-out"
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,3800}")
"""Of which HTTP and a cookie can be made; a browser keeps no cookie of more than 4 KiB."""
_RELOAD_SECONDS: Final = 5
_COMMON: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NOT_FRAMED: Final = "base-uri 'none'; frame-ancestors 'none'"
_ATTRIBUTES: Final = "Path=/; Secure; HttpOnly; SameSite=Strict"


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    """Without the query."""
    headers: Mapping[str, str]
    """By name in small letters."""
    form: str = ""
    """The body of a POST."""

    @property
    def is_of_a_browser(self) -> bool:
        """Whether it asks for a page, and not for a program's answer."""
        return "text/html" in self.headers.get("accept", "")


@dataclass(frozen=True)
class Answer:
    """What is sent: a text, or a file that is packed by gzip."""

    status: HTTPStatus
    content: str | Path
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reporter:
    """Answers requests. Thread-safe; it calls the API server and waits for drawings."""

    access: Callable[[str, str, str], Access]
    """Of the bearer of this token to the run with this namespace and name."""
    page: Callable[[str, str], Page | None]
    """The report of this run; None if there is none."""
    audience: str = ""
    """For which a token must have been made, for the advice."""

    def answer(self, request: Request) -> Answer:
        """The answer to this request; every error of ours becomes one."""
        if request.method == "POST" and request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _sentence(request, HTTPStatus.FORBIDDEN, "this form was sent by a page of another site")
        if request.path == _SIGN_OUT and request.method == "POST":
            return _redirect("/", f"{COOKIE}=; Max-Age=0; {_ATTRIBUTES}")
        if request.path == "/":
            return _text(request, HTTPStatus.OK, f"{_WHERE}.\n", pages.start(f"{_WHERE}."))
        if (match := _PATH.fullmatch(request.path)) is None:
            return _sentence(request, HTTPStatus.NOT_FOUND, _WHERE)
        try:
            return self._of_run(request, match["namespace"], match["name"])
        except FedPipeError as error:
            return _failure(request, error)

    def _of_run(self, request: Request, namespace: str, name: str) -> Answer:
        token = _token(request)
        if token is None:
            problem = "sign in with a token, as Authorization: Bearer TOKEN" if request.method == "GET" else "this is no token"
            return self._sign_in(request, namespace, name, problem)
        access = self.access(token, namespace, name)
        if access is Access.UNKNOWN:
            made_for = f" for {self.audience}" if self.audience else ""
            return self._sign_in(request, namespace, name, f"the API server does not know this token{made_for}, or it has expired")
        if access is Access.FORBIDDEN:
            advice = "ask an admin of the namespace for the right to get federatedfinetunes.fedpipe.io there"
            return _sentence(request, HTTPStatus.FORBIDDEN, f"you may not get the run {namespace}/{name}, if there is one: {advice}")
        if request.method == "POST":
            return _redirect(request.path, f"{COOKIE}={token}; {_ATTRIBUTES}")
        page = self.page(namespace, name)
        if page is None:
            return _sentence(request, HTTPStatus.NOT_FOUND, f"this operator serves no run {namespace}/{name}: kubectl get fft -A lists all")
        return _report(page)

    def _sign_in(self, request: Request, namespace: str, name: str, problem: str) -> Answer:
        is_first = request.method == "GET" and COOKIE not in request.headers.get("cookie", "")
        form = pages.sign_in(namespace, name, "" if is_first else problem, self.audience)
        # Without a scheme of its own, a browser asks for no password.
        return _text(request, HTTPStatus.UNAUTHORIZED, f"{problem}.\n", form, {"WWW-Authenticate": 'Bearer realm="fedpipe"'})


def _token(request: Request) -> str | None:
    """The caller's token: of the form, of the header, or of the cookie; None if there is none, or it cannot be one."""
    if request.method == "POST":
        found = parse_qs(request.form, max_num_fields=4).get("token", [""])[0].strip()
    elif authorization := request.headers.get("authorization", ""):
        scheme, _, found = authorization.partition(" ")
        found = found.strip() if scheme.lower() == "bearer" else ""
    else:
        cookies = (part.strip().partition("=") for part in request.headers.get("cookie", "").split(";"))
        found = next((value for name, _, value in cookies if name == COOKIE), "")
    return found if _TOKEN.fullmatch(found) else None


def _report(page: Page) -> Answer:
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": f"{page.policy}; form-action 'none'; {_NOT_FRAMED}"}
    return Answer(HTTPStatus.OK, page.file, _COMMON | headers)


def _failure(request: Request, error: FedPipeError) -> Answer:
    passes = isinstance(error, TransientError)
    status = HTTPStatus.SERVICE_UNAVAILABLE if passes else HTTPStatus.CONFLICT
    reload = _RELOAD_SECONDS if error.reason == "ReportBeingDrawn" else 0
    text = f"{error.reason}: {error.message}"
    headers = {"Retry-After": str(_RELOAD_SECONDS)} if passes else {}
    title = "The report is being drawn" if reload else "There is no report now"
    return _text(request, status, f"{text}\n", pages.message(title, text, reload_seconds=reload), headers)


def _sentence(request: Request, status: HTTPStatus, text: str) -> Answer:
    return _text(request, status, f"{text}.\n", pages.message(status.phrase, f"{text}."))


def _text(request: Request, status: HTTPStatus, plain: str, page: str, headers: Mapping[str, str] | None = None) -> Answer:
    """The page for a browser, the text for others."""
    content, kind = (page, "html") if request.is_of_a_browser else (plain, "plain")
    own = {"Content-Type": f"text/{kind}; charset=utf-8", "Content-Security-Policy": f"{pages.POLICY}; {_NOT_FRAMED}"}
    return Answer(status, content, _COMMON | own | dict(headers or {}))


def _redirect(path: str, cookie: str) -> Answer:
    return Answer(HTTPStatus.SEE_OTHER, "", _COMMON | {"Location": path, "Set-Cookie": cookie, "Content-Type": "text/plain; charset=utf-8"})
