"""Who may read: as the API server says, asked seldom, and never from an answer that is too old."""

import pytest
from report_servers import AUDIENCE, StandInReviews

from fedpipe_operator.cluster.api import ACCESS_REVIEWS, TOKEN_REVIEWS
from fedpipe_operator.errors import TransientError
from fedpipe_operator.report_server import gate as module
from fedpipe_operator.report_server.gate import Access, Gate


@pytest.fixture
def reviews() -> StandInReviews:
    return StandInReviews()


def gate_of(reviews: StandInReviews, now: list[float], audience: str = AUDIENCE) -> Gate:
    return Gate(reviews, audience, lambda: now[0])  # type: ignore[arg-type]


def test_a_caller_is_who_the_token_says_and_may_what_the_api_server_says(reviews: StandInReviews) -> None:
    gate = gate_of(reviews, [0.0])

    assert gate.access("viewers-token", "default", "toy") is Access.ALLOWED
    assert gate.access("viewers-token", "default", "other") is Access.FORBIDDEN
    assert gate.access("strangers-token", "default", "toy") is Access.FORBIDDEN
    assert gate.access("no-token", "default", "toy") is Access.UNKNOWN


def test_the_access_review_has_everything_that_an_authorizer_may_ask_for(reviews: StandInReviews) -> None:
    gate_of(reviews, [0.0]).access("viewers-token", "default", "toy")
    asked = reviews.asked[-1]

    assert asked["kind"] == "SubjectAccessReview"
    assert asked["spec"] == {
        "user": "viewer",
        "uid": "uid-of-viewer",
        "groups": ["system:authenticated"],
        "extra": {"scopes": ["all"]},
        "resourceAttributes": {
            "verb": "get",
            "group": "fedpipe.io",
            "resource": "federatedfinetunes",
            "namespace": "default",
            "name": "toy",
        },
    }


def test_a_token_that_opens_the_api_server_is_refused_where_one_for_reports_is_asked_for(reviews: StandInReviews) -> None:
    reviews.audiences = ("https://kubernetes.default.svc",)

    assert gate_of(reviews, [0.0]).access("viewers-token", "default", "toy") is Access.UNKNOWN
    assert gate_of(reviews, [0.0], audience="").access("viewers-token", "default", "toy") is Access.ALLOWED


def test_an_authenticator_that_does_not_know_audiences_admits_nobody() -> None:
    class Old(StandInReviews):
        def _token(self, spec: dict[str, object]) -> dict[str, object]:
            return {name: value for name, value in super()._token(spec).items() if name != "audiences"}

    assert gate_of(Old(), [0.0]).access("viewers-token", "default", "toy") is Access.UNKNOWN


def test_the_same_question_is_asked_once_in_ten_seconds(reviews: StandInReviews) -> None:
    now = [100.0]
    gate = gate_of(reviews, now)
    for at in (100.0, 105.0, 109.9):
        now[0] = at
        gate.access("viewers-token", "default", "toy")

    assert [body["kind"] for body in reviews.asked] == ["TokenReview", "SubjectAccessReview"]


def test_a_right_that_was_taken_away_counts_no_longer_than_that(reviews: StandInReviews) -> None:
    now = [100.0]
    gate = gate_of(reviews, now)
    gate.access("viewers-token", "default", "toy")
    reviews.may_get.clear()
    now[0] = 110.0

    assert gate.access("viewers-token", "default", "toy") is Access.FORBIDDEN


def test_an_answer_is_kept_for_its_own_question_only(reviews: StandInReviews) -> None:
    gate = gate_of(reviews, [0.0])
    gate.access("viewers-token", "default", "toy")

    assert gate.access("viewers-token", "other", "toy") is Access.FORBIDDEN
    assert gate.access("strangers-token", "default", "toy") is Access.FORBIDDEN


def test_what_is_kept_is_bounded_and_has_no_token(reviews: StandInReviews, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 5)
    gate = gate_of(reviews, [0.0])
    for number in range(20):
        gate.access("viewers-token", "default", f"run-{number}")

    assert len(gate._kept) == 5
    assert "viewers-token" not in repr(gate._kept)


def test_an_api_server_that_does_not_answer_is_no_answer_to_keep(reviews: StandInReviews) -> None:
    gate = gate_of(reviews, [0.0])
    reviews.trouble = TransientError("ApiUnavailable", "no route to host")
    with pytest.raises(TransientError):
        gate.access("viewers-token", "default", "toy")
    reviews.trouble = None

    assert gate.access("viewers-token", "default", "toy") is Access.ALLOWED


def test_the_kinds_are_those_of_the_api() -> None:
    assert TOKEN_REVIEWS.path("") == "/apis/authentication.k8s.io/v1/tokenreviews"
    assert ACCESS_REVIEWS.path("") == "/apis/authorization.k8s.io/v1/subjectaccessreviews"
