"""What a request for a report gets, and what it is not told."""

from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import pytest

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.report_server.answers import COOKIE, Answer, Reporter, Request
from fedpipe_operator.report_server.drawing import Page
from fedpipe_operator.report_server.gate import Access

PAGE = Page(Path("/pages/uid-1.html.gz"), "default-src 'none'; script-src 'sha256-x'")
ACCESSES = {"good": Access.ALLOWED, "foreign": Access.FORBIDDEN}
EVERY_HEADER = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
BROWSER = {"accept": "text/html,application/xhtml+xml"}


def find(namespace: str, name: str) -> Page | None:
    return PAGE if (namespace, name) == ("wards", "toy") else None


REPORTER = Reporter(lambda token, _namespace, _name: ACCESSES.get(token, Access.UNKNOWN), find, "fedpipe.io/report")


def raising(error: FedPipeError) -> Callable[..., Page]:
    def page(_namespace: str, _name: str) -> Page:
        raise error

    return page


def get(path: str = "/wards/toy", bearer: str = "", *, reporter: Reporter = REPORTER, **headers: str) -> Answer:
    given = {name.replace("_", "-"): value for name, value in headers.items()} | ({"authorization": f"Bearer {bearer}"} if bearer else {})
    return reporter.answer(Request("GET", path, given))


def sign_in(token: str, **headers: str) -> Answer:
    given = BROWSER | {name.replace("_", "-"): value for name, value in headers.items()}
    return REPORTER.answer(Request("POST", "/wards/toy", given, f"token={token}"))


def test_who_may_get_the_run_gets_its_report() -> None:
    answer = get(bearer="good")

    assert (answer.status, answer.content) == (HTTPStatus.OK, PAGE.file)
    assert answer.headers["Content-Security-Policy"].startswith(PAGE.policy)


@pytest.mark.parametrize(
    "answer",
    [get(bearer="good"), get(), get(bearer="bad"), get(bearer="foreign"), get("/"), get("/x"), get("/wards/none", "good"), sign_in("good")],
    ids=["report", "no token", "unknown", "forbidden", "start", "no path", "no run", "signed in"],
)
def test_every_answer_forbids_caches_frames_and_guesses_of_its_type(answer: Answer) -> None:
    assert answer.headers.items() >= EVERY_HEADER.items()
    if answer.status is not HTTPStatus.SEE_OTHER:
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "frame-ancestors 'none'" in policy
        assert "base-uri 'none'" in policy


def test_a_caller_without_a_token_is_told_how_to_send_one() -> None:
    answer = get()

    assert answer.status is HTTPStatus.UNAUTHORIZED
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="fedpipe"'
    assert answer.content == "sign in with a token, as Authorization: Bearer TOKEN.\n"


@pytest.mark.parametrize("scheme", ["Basic good", "good", "Bearer", "Bearer two words", "Bearer caf\u00e9", "Bearer " + "x" * 4000])
def test_what_is_no_bearer_token_is_never_sent_to_the_api_server(scheme: str) -> None:
    def asked(*_: str) -> Access:
        raise AssertionError("the API server was asked")

    assert get(reporter=Reporter(asked, find), authorization=scheme).status is HTTPStatus.UNAUTHORIZED


def test_a_token_that_the_api_server_does_not_know_is_told_for_what_one_must_be_made() -> None:
    answer = get(bearer="bad")

    assert answer.status is HTTPStatus.UNAUTHORIZED
    assert answer.content == "the API server does not know this token for fedpipe.io/report, or it has expired.\n"


def test_who_may_not_get_a_run_is_not_told_whether_it_exists() -> None:
    there, absent = get("/wards/toy", "foreign"), get("/wards/none", "foreign")

    assert there.status is absent.status is HTTPStatus.FORBIDDEN
    assert str(there.content).replace("wards/toy", "wards/none") == absent.content
    assert "ask an admin of the namespace for the right to get federatedfinetunes.fedpipe.io" in str(there.content)


def test_who_may_get_it_is_told_that_there_is_no_such_run() -> None:
    answer = get("/wards/none", "good")

    assert (answer.status, answer.content) == (
        HTTPStatus.NOT_FOUND,
        "this operator serves no run wards/none: kubectl get fft -A lists all.\n",
    )


NO_PATHS = ["/wards", "/wards/toy/", "/wards/toy/x", "//wards/toy", "/Wards/toy", "/wards/../toy", "/wards/to%79", "/a/\x00"]


@pytest.mark.parametrize("path", NO_PATHS)
def test_every_other_path_is_told_where_reports_are(path: str) -> None:
    answer = get(path, "good")

    assert (answer.status, answer.content) == (HTTPStatus.NOT_FOUND, "the report of a run is at /NAMESPACE/NAME.\n")


def test_a_browser_gets_a_form_without_a_complaint_at_first_and_with_one_when_its_token_has_expired() -> None:
    first, expired = get(**BROWSER), get(**BROWSER, cookie=f"other=1; {COOKIE}=bad")

    assert first.status is expired.status is HTTPStatus.UNAUTHORIZED
    assert "<form" in str(first.content)
    assert "kubectl create token ACCOUNT -n wards --audience fedpipe.io/report" in str(first.content)
    assert 'id="problem"' not in str(first.content)
    assert "or it has expired" in str(expired.content)


def test_a_good_token_in_the_form_becomes_a_cookie_that_scripts_and_other_sites_cannot_use() -> None:
    answer = sign_in("good")

    assert (answer.status, answer.headers["Location"]) == (HTTPStatus.SEE_OTHER, "/wards/toy")
    name, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert name == "__Host-fedpipe-report=good"
    assert set(attributes) == {"Path=/", "Secure", "HttpOnly", "SameSite=Strict"}
    assert get(cookie=f"a=b; {COOKIE}=good").status is HTTPStatus.OK


@pytest.mark.parametrize(
    ("token", "status", "told"),
    [
        ("bad", HTTPStatus.UNAUTHORIZED, "does not know this token"),
        ("", HTTPStatus.UNAUTHORIZED, "this is no token"),
        ("foreign", HTTPStatus.FORBIDDEN, "you may not get the run wards/toy, if there is one"),
        ("good%0d%0aSet-Cookie:%20x=1", HTTPStatus.UNAUTHORIZED, "this is no token"),
        ("x" * 3801, HTTPStatus.UNAUTHORIZED, "this is no token"),
    ],
    ids=["unknown", "none", "forbidden", "two headers", "too long for a cookie"],
)
def test_another_token_in_the_form_sets_no_cookie(token: str, status: HTTPStatus, told: str) -> None:
    answer = sign_in(token)

    assert answer.status is status
    assert told in str(answer.content)
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_the_form_of_another_site_is_refused(site: str) -> None:
    answer = sign_in("good", sec_fetch_site=site)

    assert answer.status is HTTPStatus.FORBIDDEN
    assert "Set-Cookie" not in answer.headers


def test_signing_out_removes_the_cookie() -> None:
    answer = REPORTER.answer(Request("POST", "/sign-out", BROWSER | {"cookie": f"{COOKIE}=good"}))

    assert answer.headers["Set-Cookie"].startswith(f"{COOKIE}=; Max-Age=0; ")
    assert '<form method="post" action="/sign-out">' in str(get("/", **BROWSER).content)


def test_the_header_counts_before_the_cookie() -> None:
    assert get(bearer="foreign", cookie=f"{COOKIE}=good").status is HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TransientError("ReportNotDrawn", "no memory"), HTTPStatus.SERVICE_UNAVAILABLE),
        (UserError("SecretMissing", "create it"), HTTPStatus.CONFLICT),
    ],
)
def test_what_keeps_a_report_from_being_drawn_is_told_with_its_reason(error: FedPipeError, status: HTTPStatus) -> None:
    answer = get(bearer="good", reporter=replace(REPORTER, page=raising(error)))

    assert (answer.status, answer.content) == (status, f"{error.reason}: {error.message}\n")


def test_a_browser_asks_again_by_itself_while_the_report_is_drawn() -> None:
    waiting = replace(REPORTER, page=raising(TransientError("ReportBeingDrawn", "in some seconds")))
    answer = get(bearer="good", reporter=waiting, **BROWSER)

    assert answer.headers["Retry-After"] == "5"
    assert '<meta http-equiv="refresh" content="5">' in str(answer.content)


def test_an_api_server_that_does_not_answer_is_no_permission() -> None:
    def unreachable(*_: str) -> Access:
        raise TransientError("ApiUnavailable", "no route to host")

    answer = get(bearer="good", reporter=replace(REPORTER, access=unreachable))

    assert (answer.status, answer.content) == (HTTPStatus.SERVICE_UNAVAILABLE, "ApiUnavailable: no route to host\n")


def test_no_page_has_a_token_in_it_and_every_text_is_escaped() -> None:
    hostile = replace(REPORTER, page=raising(UserError("StoreDenied", "<script>alert(1)</script>")))

    assert "<script>" not in str(get(bearer="good", reporter=hostile, **BROWSER).content)
    assert "bad-token" not in str(sign_in("bad-token").content)
