"""Calls to the API: paths, bodies, and what becomes of refusals. The client is real, its connection is a stand-in."""

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from kubernetes import client
from urllib3.exceptions import ProtocolError

from fedpipe_operator.cluster.api import JOBS, LEASES, RUNS, SECRETS, Api, for_leases
from fedpipe_operator.cluster.leadership import Leadership
from fedpipe_operator.cluster.lease import HOLD_SECONDS
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.observer import Observer


@dataclass
class Answer:
    status: int
    data: bytes

    def read(self) -> bytes:
        return self.data


@dataclass
class Connection(client.ApiClient):
    """Records each request, and returns the prepared response."""

    status: int = 200
    body: Any = field(default_factory=dict)
    broken: Exception | None = None
    requests: list[tuple[str, str, Any, str]] = field(default_factory=list)
    time_limits: list[tuple[float, float]] = field(default_factory=list)
    pages: list[Any] = field(default_factory=list)
    """Of bodies, one for each request, before `body`."""

    def __post_init__(self) -> None:
        super().__init__(client.Configuration(host="http://api"))

    def call_api(self, method: str, url: str, header_params: Any = None, body: Any = None, *_: Any, _request_timeout: Any) -> Any:
        self.time_limits.append(_request_timeout)
        self.requests.append((method, url.removeprefix("http://api"), body, header_params.get("Content-Type", "")))
        if self.broken is not None:
            raise self.broken
        if self.pages:
            return Answer(self.status, json.dumps(self.pages.pop(0)).encode())
        return Answer(self.status, json.dumps(self.body).encode() if not isinstance(self.body, bytes) else self.body)


def test_each_call_goes_where_the_api_wants_it() -> None:
    connection = Connection(body={"items": [1]})
    api = Api(connection)

    api.get(SECRETS, "wards", "store")
    api.find(JOBS, "wards", labels={"b": "2", "a": "1"}, fields={"x": "y"})
    api.find(JOBS, "wards", labels={"a": "1"}, may_be_old=True)
    api.create(JOBS, "wards", {"spec": 1})
    api.merge(JOBS, "wards", "one", {"spec": 2})
    api.replace_status(RUNS, "wards", "triage", {"round": 1})
    api.delete(JOBS, "wards", "one", uid="1", foreground=True)
    api.delete_all(SECRETS, "wards", {"a": "1"})

    jobs, secrets = "/apis/batch/v1/namespaces/wards/jobs", "/api/v1/namespaces/wards/secrets"
    patch = [{"op": "add", "path": "/status", "value": {"round": 1}}]
    assert connection.requests == [
        ("GET", f"{secrets}/store", None, "application/json"),
        ("GET", f"{jobs}?labelSelector=a%3D1%2Cb%3D2&fieldSelector=x%3Dy", None, "application/json"),
        ("GET", f"{jobs}?labelSelector=a%3D1&resourceVersion=0", None, "application/json"),
        ("POST", jobs, {"spec": 1}, "application/json"),
        ("PATCH", f"{jobs}/one", {"spec": 2}, "application/merge-patch+json"),
        (
            "PATCH",
            "/apis/fedpipe.io/v1alpha1/namespaces/wards/federatedfinetunes/triage/status",
            patch,
            "application/json-patch+json",
        ),
        ("DELETE", f"{jobs}/one", {"propagationPolicy": "Foreground", "preconditions": {"uid": "1"}}, "application/json"),
        ("DELETE", f"{secrets}?labelSelector=a%3D1&propagationPolicy=Background", None, "application/json"),
    ]


def test_a_log_is_read_to_a_limit_whatever_its_lines_hold() -> None:
    connection = Connection(body=b"a line \xff")

    assert Api(connection).log("wards", "toy-x", "trainer", lines=7) == "a line \ufffd"
    assert connection.requests[0][1] == "/api/v1/namespaces/wards/pods/toy-x/log?container=trainer&tailLines=7&limitBytes=1048576"


def test_a_log_is_followed_from_a_second_on_and_said_to_be_cut_at_the_limit() -> None:
    first, cut = Connection(body=b"a line \xff"), Connection(body=b"x" * 2**20)

    assert Api(first).log_since("wards", "toy-x", "trainer", since="", lines=7) == ("a line \ufffd", False)
    assert first.requests[0][1] == (
        "/api/v1/namespaces/wards/pods/toy-x/log?container=trainer&timestamps=true&tailLines=7&limitBytes=1048576"
    )
    assert Api(cut).log_since("wards", "toy-x", "trainer", since="2026-01-01T02:00:00+02:00", lines=7)[1]
    assert "timestamps=true&sinceTime=2026-01-01T02%3A00%3A00%2B02%3A00&limitBytes" in cut.requests[0][1]
    assert Api(Connection(404)).log_since("wards", "toy-x", "trainer", since="", lines=None) == ("", False)


def test_what_is_not_there_is_none_and_what_is_there_already_too() -> None:
    assert Api(Connection(404)).get(JOBS, "wards", "one") is None
    assert Api(Connection(404)).replace_status(RUNS, "wards", "triage", {}) is None
    assert Api(Connection(409)).create(JOBS, "wards", {}) is None
    Api(Connection(404)).delete(JOBS, "wards", "one", uid="1")
    assert not Api(Connection(404)).serves(RUNS, "wards")


def test_another_object_of_the_name_that_is_deleted_stays_and_is_no_error() -> None:
    Api(Connection(409)).delete(JOBS, "wards", "one", uid="1")


def test_no_names_are_an_answer_too() -> None:
    assert Api(Connection(body={"metadata": {}, "items": None})).names(JOBS, "wards") == {}


def test_names_come_in_pages_and_from_the_whole_cluster_where_no_namespace_is_given() -> None:
    first = {"metadata": {"continue": "from here"}, "items": [{"metadata": {"uid": "1", "name": "one"}}]}
    last = {"metadata": {}, "items": [{"metadata": {"uid": "2", "name": "two"}}]}
    connection = Connection(pages=[first, last])

    assert Api(connection).names(JOBS, "", label="fedpipe.io/run") == {"1": "one", "2": "two"}

    path = "/apis/batch/v1/jobs?limit=500&labelSelector=fedpipe.io%2Frun"
    assert [url for _, url, _, _ in connection.requests] == [path, f"{path}&continue=from+here"]


@pytest.mark.parametrize(
    ("status", "message", "kind", "reason"),
    [
        (403, "jobs is forbidden: user cannot create", UserError, "ApiForbidden"),
        (401, "unauthorized", UserError, "ApiForbidden"),
        (403, "exceeded quota: gpus", TransientError, "QuotaExceeded"),
        (403, "unable to create in wards because it is being terminated", TransientError, "NamespaceTerminating"),
        (409, "the object has been modified", TransientError, "ApiConflict"),
        (429, "too many requests", TransientError, "ApiUnavailable"),
        (503, "shutting down", TransientError, "ApiUnavailable"),
        (422, "spec.template is immutable", UserError, "ApiRefused"),
    ],
)
def test_a_refusal_is_a_transient_error_or_a_user_error(status: int, message: str, kind: type[FedPipeError], reason: str) -> None:
    with pytest.raises(kind) as refused:
        Api(Connection(status, {"message": message})).merge(JOBS, "wards", "one", {})

    assert refused.value.reason == reason
    assert refused.value.message.startswith(f"PATCH jobs wards/one: {message}")


def test_an_answer_that_is_no_json_is_shown_as_it_is() -> None:
    with pytest.raises(TransientError, match="upstream timed out"):
        Api(Connection(504, b"<html>upstream timed out</html>")).find(JOBS, "wards")


def test_no_response_is_a_transient_error() -> None:
    with pytest.raises(TransientError, match="ApiUnavailable: GET jobs wards/one"):
        Api(Connection(broken=ProtocolError("Connection aborted."))).get(JOBS, "wards", "one")


def test_a_replica_that_does_not_lead_reads_and_changes_nothing_but_the_lease() -> None:
    connection, leadership = Connection(body={"items": []}), Leadership(clock=lambda: 0.0)
    api = Api(connection, leadership.acting)

    api.get(JOBS, "wards", "one")
    api.find(JOBS, "wards")
    api.serves(RUNS, "wards")
    changes = [
        lambda: api.create(JOBS, "wards", {}),
        lambda: api.merge(JOBS, "wards", "one", {}),
        lambda: api.replace_status(RUNS, "wards", "triage", {}),
        lambda: api.delete(JOBS, "wards", "one", uid="1"),
        lambda: api.delete_all(SECRETS, "wards", {"a": "1"}),
    ]
    for change in changes:
        with pytest.raises(TransientError, match="NotLeading"):
            change()
    for_leases(api).merge(LEASES, "wards", "fedpipe", {})

    assert [method for method, *_ in connection.requests] == ["GET", "GET", "GET", "PATCH"]


def test_a_renewal_waits_no_longer_than_its_lease_and_other_calls_do() -> None:
    connection = Connection()
    api = Api(connection)
    api.get(JOBS, "wards", "one")
    for_leases(api).get(LEASES, "wards", "fedpipe")

    assert connection.time_limits[0] == (5.0, 30.0)
    assert 3 * sum(connection.time_limits[1]) < HOLD_SECONDS


def test_each_call_is_told_by_its_verb_and_how_it_ended() -> None:
    class Told(Observer):
        calls: ClassVar[list[tuple[str, str]]] = []

        def kube_called(self, verb: str, reason: str, seconds: float) -> None:
            assert seconds >= 0
            self.calls.append((verb, reason))

    connection = Connection(body={"items": [], "metadata": {}})
    api = Api(connection, observer=Told())
    api.get(SECRETS, "wards", "store")
    api.find(JOBS, "wards")
    api.create(JOBS, "wards", {})
    api.replace_status(RUNS, "wards", "triage", {})
    api.delete(JOBS, "wards", "one", uid="1")
    api.delete_all(SECRETS, "wards", {"a": "1"})
    connection.status = 404
    api.get(SECRETS, "wards", "none")
    connection.status = 409
    with pytest.raises(TransientError):
        api.merge(JOBS, "wards", "one", {})
    connection.broken = ProtocolError("closed")
    with pytest.raises(TransientError):
        api.get(SECRETS, "wards", "store")

    assert [verb for verb, _ in Told.calls] == ["get", "list", "create", "patch", "delete", "deletecollection", "get", "patch", "get"]
    assert [why for _, why in Told.calls] == ["OK"] * 7 + ["ApiConflict", "ApiUnavailable"], "an object that is not there is an answer"
