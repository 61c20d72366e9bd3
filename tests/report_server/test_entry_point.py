"""The operator serves reports only if it is told to, by every replica, and from its start on."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from free_ports import free_port
from kubernetes import client
from report_servers import ask, bearer
from stand_in_cluster import SETTINGS

from fedpipe_operator import __main__ as entry_point
from fedpipe_operator.cluster.api import RUNS, Api, for_reviews
from fedpipe_operator.errors import TransientError
from fedpipe_operator.observer import Observer
from fedpipe_operator.pod_settings import ReportServer
from fedpipe_operator.settings import Replica

REPLICA = Replica(pod="fedpipe-0", lease="fedpipe", namespace="fedpipe")


def unreachable(changing: Callable[[], AbstractContextManager[None]], observer: Observer) -> Api:
    """In place of the cluster's API server: nothing listens."""
    configuration = client.Configuration(host="http://127.0.0.1:1")
    configuration.retries = False
    return Api(client.ApiClient(configuration), changing, observer=observer)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(entry_point, "in_cluster", unreachable)
    monkeypatch.setattr(entry_point.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    return tmp_path


def start(**reports: object) -> None:
    settings = replace(SETTINGS, metrics_port=free_port(), reports=ReportServer.model_validate(reports))
    entry_point.make_controller(settings, REPLICA)


def test_by_default_nothing_listens(folder: Path) -> None:
    del folder
    port = free_port()
    start(port=port)

    with pytest.raises(ConnectionRefusedError):
        ask(port, "/")


def test_they_are_served_from_the_start_and_without_the_api_server_nobody_is_let_in(folder: Path) -> None:
    del folder
    port = free_port()
    start(enabled=True, port=port)

    assert ask(port, "/default/toy")[0] == 401
    status, body, _ = ask(port, "/default/toy", headers=bearer("a-token"))
    assert (status, body[:30]) == (503, b"ApiUnavailable: POST tokenrevi")


def test_the_page_of_a_run_that_is_deleted_goes_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del folder
    gone: list[str] = []
    monkeypatch.setattr(entry_point.Drawer, "forget", lambda _drawer, uid: gone.append(uid))
    settings = replace(SETTINGS, metrics_port=free_port(), reports=ReportServer(enabled=True, port=free_port()))
    controller = entry_point.make_controller(settings, REPLICA)
    controller.runs.forget({"metadata": {"namespace": "default", "name": "toy", "uid": "uid-1"}})

    assert gone == ["uid-1"]


def test_a_port_that_is_taken_ends_the_operator_with_what_to_do(folder: Path) -> None:
    del folder
    with socket.create_server(("0.0.0.0", 0)) as taken, pytest.raises(SystemExit, match="choose a port that is free"):  # noqa: S104 -- as the operator's
        start(enabled=True, port=taken.getsockname()[1])


def test_a_secret_without_a_certificate_ends_the_operator_with_what_to_do(folder: Path) -> None:
    del folder
    with pytest.raises(SystemExit, match=r"a Secret with tls\.crt and its tls\.key"):
        start(enabled=True, port=free_port(), tls_secret_name="reports")  # noqa: S106 -- a name


def test_a_replica_that_does_not_lead_may_ask_about_callers_and_change_nothing() -> None:
    def refused() -> AbstractContextManager[None]:
        raise TransientError("NotLeading", "another replica leads")

    api = unreachable(refused, Observer())

    with pytest.raises(TransientError, match="NotLeading"):
        api.create(RUNS, "default", {})
    with pytest.raises(TransientError, match="ApiUnavailable"):
        for_reviews(api).create(RUNS, "default", {})
