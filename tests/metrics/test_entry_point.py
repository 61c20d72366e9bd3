"""The operator serves its metrics from its start on, and every layer tells them what it does."""

import http.client
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
from free_ports import free_port
from kubernetes import client
from scrapes import Scrape
from stand_in_cluster import SETTINGS

from fedpipe_operator import __main__ as entry_point
from fedpipe_operator.cluster.api import RUNS, Api
from fedpipe_operator.errors import TransientError
from fedpipe_operator.observer import Observer
from fedpipe_operator.settings import Replica

REPLICA = Replica(pod="fedpipe-0", lease="fedpipe", namespace="fedpipe")


def unreachable(changing: Callable[[], AbstractContextManager[None]], observer: Observer) -> Api:
    """In place of the cluster's API server: nothing listens."""
    configuration = client.Configuration(host="http://127.0.0.1:1")
    configuration.retries = False
    return Api(client.ApiClient(configuration), changing, observer=observer)


def read(port: int) -> Scrape:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return Scrape.of(text)


def test_metrics_are_served_before_the_api_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_point, "in_cluster", unreachable)
    port = free_port()
    controller = entry_point.make_controller(replace(SETTINGS, metrics_port=port), REPLICA)
    with pytest.raises(TransientError):
        controller.runs.cluster.api.get(RUNS, "default", "toy")
    scrape = read(port)

    assert scrape.value("kube_requests_total", verb="get", reason="ApiUnavailable") == 1
    assert scrape.value("workqueue_depth", queue="run") == 0
    assert scrape.value("leader") == 0, "it stands for leadership once it watches everything"
    assert scrape.has("build_info")
    observers = (controller.observer, controller.runs.observer, controller.sites.observer, controller.runs.stores.observer)
    assert {id(one) for one in observers} == {id(controller.runs.cluster.api.observer)}


def test_a_port_that_is_taken_ends_the_operator_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_point, "in_cluster", unreachable)
    with socket.create_server(("0.0.0.0", 0)) as taken, pytest.raises(SystemExit, match="choose a port that is free"):  # noqa: S104 -- as the operator's
        entry_point.make_controller(replace(SETTINGS, metrics_port=taken.getsockname()[1]), REPLICA)
