"""The chart's NetworkPolicies, enforced: where pods of the release's namespace can connect to, and who can connect to them."""

import ipaddress
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import pytest
from cluster_user import Kubectl, Plain, wait_until
from fleet_namespace import store_endpoint
from installed_operator import Operator
from testcluster.layout import API_PORT, API_SERVICE, BRIDGE, HOST
from testcluster.network import policies_are_enforced
from testcluster.shell import run

pytestmark = pytest.mark.e2e

METADATA: Final = "169.254.77.77"
"""A link-local address of this machine, which no cloud uses; it stands for a cloud's metadata service."""
PORT: Final = 8000
"""On which every pod of this file, and the metadata service, listens."""
OURS: Final = {"app.kubernetes.io/name": "fedpipe", "app.kubernetes.io/managed-by": "fedpipe-operator"}
PODS: Final = {
    "trainer": OURS | {"app.kubernetes.io/component": "trainer"},
    "aggregation": OURS | {"app.kubernetes.io/component": "aggregation"},
    "bystander": {"app": "bystander"},
}
"""The labels of each pod; the policies are for the first two."""
_SERVER: Final = f"import http.server as h; h.ThreadingHTTPServer(('', {PORT}), h.SimpleHTTPRequestHandler).serve_forever()"
_CONNECT: Final = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
except socket.gaierror:
    print("no name")
except OSError:
    print("no")
else:
    print("yes")
"""


def pod(name: str) -> Plain:
    """A pod in the operator's image that serves nothing of interest, under the restricted Pod Security profile."""
    container = {
        "name": "server",
        "image": os.environ["FEDPIPE_OPERATOR_IMAGE"],
        "command": ["python", "-c", _SERVER],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "containers": [container],
        "securityContext": security,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"e2e-{name}", "labels": PODS[name]}, "spec": spec}


@contextmanager
def metadata_service() -> Iterator[None]:
    """Something that listens on the link-local address."""
    run("ip", "addr", "add", f"{METADATA}/32", "dev", BRIDGE)
    try:
        with socket.create_server((METADATA, PORT)) as server:
            threading.Thread(target=_accept_all, args=(server,), daemon=True).start()
            yield
    finally:
        run("ip", "addr", "delete", f"{METADATA}/32", "dev", BRIDGE)


def _accept_all(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return  # closed at the end


@pytest.fixture(scope="module")
def pods(disposable_cluster: None, operator: Operator) -> Iterator[Kubectl]:
    """The pods in the release's namespace, once the policies are enforced for them."""
    del disposable_cluster
    assert policies_are_enforced(), "no program reads the queue of the NetworkPolicies: python tests/cluster status"
    kubectl = operator.kubectl
    kubectl.apply(*map(pod, PODS))
    try:
        with metadata_service():
            kubectl("wait", "--for=condition=Ready", *(f"pod/e2e-{name}" for name in PODS), "--timeout=120s")
            wait_until(lambda: connects(kubectl, "trainer", HOST, API_PORT) == "no", "the policies are enforced", seconds=30)
            yield kubectl
    finally:
        kubectl("delete", *(f"pod/e2e-{name}" for name in PODS), "--ignore-not-found", "--wait=false")


def connects(kubectl: Kubectl, name: str, host: str, port: int) -> str:
    """Whether a connection from this pod succeeds: yes, no, or no name."""
    return execute(kubectl, f"pod/e2e-{name}", host, port)


def execute(kubectl: Kubectl, subject: str, host: str, port: int) -> str:
    return kubectl("exec", subject, "--", "python", "-c", _CONNECT, host, str(port)).strip()


def address_of(kubectl: Kubectl, name: str) -> str:
    found: str = kubectl.get("pod", f"e2e-{name}")["status"]["podIP"]
    return str(ipaddress.ip_address(found))


@pytest.mark.parametrize(("host", "port"), [(API_SERVICE, 443), (HOST, API_PORT), ("kubernetes.default", 443), (METADATA, PORT)])
def test_trainers_and_aggregations_reach_neither_the_api_server_nor_a_link_local_address(pods: Kubectl, host: str, port: int) -> None:
    assert connects(pods, "bystander", host, port) == "yes"
    assert [connects(pods, name, host, port) for name in ("trainer", "aggregation")] == ["no", "no"]


@pytest.mark.parametrize("name", ["trainer", "aggregation"])
def test_trainers_and_aggregations_reach_the_store_by_its_name(pods: Kubectl, name: str) -> None:
    store = urlsplit(store_endpoint())

    assert connects(pods, name, store.hostname or "", store.port or 80) == "yes"


def test_the_operator_reaches_the_api_server_and_the_store_and_no_link_local_address(pods: Kubectl, operator: Operator) -> None:
    store = urlsplit(store_endpoint())
    (subject,) = [f"pod/{one['metadata']['name']}" for one in operator.pods()]
    targets = [(API_SERVICE, 443), (store.hostname or "", store.port or 80), (METADATA, PORT)]

    assert [execute(pods, subject, host, port) for host, port in targets] == ["yes", "yes", "no"]


def test_nothing_connects_to_a_trainer_an_aggregation_or_the_operator(pods: Kubectl, operator: Operator) -> None:
    (operators_pod,) = operator.pods()

    assert connects(pods, "trainer", address_of(pods, "bystander"), PORT) == "yes"
    assert connects(pods, "bystander", address_of(pods, "trainer"), PORT) == "no"
    assert connects(pods, "trainer", address_of(pods, "aggregation"), PORT) == "no"
    assert connects(pods, "bystander", operators_pod["status"]["podIP"], 8080) == "no"
