"""Store endpoints that answer one byte a second hold up the runs that name them, and no other."""

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Final

import pytest
from cluster_user import Plain, condition
from fleet_namespace import SECRET, SHORT, FleetNamespace, OpenNamespace
from job_history import all_jobs_finished, created_at, finished_at

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]

PORT: Final = 9000
TARPITS: Final = 8
"""As many as the operator has worker threads."""
REACTION_SECONDS: Final = 20
"""Less than one call to such a store takes until its deadline."""
TARPIT: Final = f"""
import socketserver, time

class Tarpit(socketserver.BaseRequestHandler):
    def handle(self):
        for byte in b"HTTP/1.1 200 OK\\r\\nContent-Length: 1000000\\r\\n\\r\\n" + b"<" * 1000000:
            self.request.sendall(bytes([byte]))
            time.sleep(1)

class Server(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True

Server(("", {PORT}), Tarpit).serve_forever()
"""


def tarpit(namespace: FleetNamespace) -> list[Plain]:
    """A pod with such a store, and its Service."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    image = os.environ["FEDPIPE_TRAINER_IMAGE"]
    container = {"name": "tarpit", "image": image, "command": ["python", "-c", TARPIT], "securityContext": security}
    pod_security = {"runAsUser": 65532, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"terminationGracePeriodSeconds": 1, "securityContext": pod_security, "containers": [container]}
    metadata = {"name": "tarpit", "namespace": namespace.name, "labels": {"app": "tarpit"}}
    service = {"selector": {"app": "tarpit"}, "ports": [{"port": PORT}]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]


def held_up_runs(namespace: FleetNamespace) -> list[Plain]:
    """As many as the operator has worker threads, all with the tarpit as their store."""
    store = {"bucket": "any", "endpoint": f"http://tarpit.{namespace.name}:{PORT}", "credentialsSecretRef": {"name": SECRET}}
    return [namespace.run(f"tarpit-{number}", store=store, **SHORT) for number in range(TARPITS)]


def open_connections(namespace: FleetNamespace) -> int:
    """Connections to the tarpit at this moment."""
    lines = namespace.kubectl("exec", "tarpit", "--", "cat", "/proc/net/tcp", "/proc/net/tcp6").splitlines()
    established = "01"
    return sum(f":{PORT:04X}" in line.split()[1] and line.split()[3] == established for line in lines)


@pytest.fixture(scope="module")
def tarpits(open_namespace: OpenNamespace) -> Iterator[FleetNamespace]:
    """A namespace whose runs hold up worker threads of the operator."""
    with open_namespace("e2e-tarpits") as namespace:
        namespace.kubectl.apply(*tarpit(namespace))
        namespace.kubectl("wait", "pod/tarpit", "--for=condition=Ready", "--timeout=60s")
        namespace.kubectl.apply(namespace.site("north"), *held_up_runs(namespace))
        namespace.wait("the operator talks to the tarpit", lambda: open_connections(namespace) > 1)
        yield namespace


def reactions(namespace: FleetNamespace) -> dict[str, float]:
    """Seconds from the creation of the honest run to its first Job, and from the end of each Job to the next one, or to the run's end."""
    run, jobs = namespace.get_run(), namespace.kubectl.list("jobs")
    first = min(map(created_at, jobs)) - created_at(run)
    ends = sorted(map(finished_at, jobs))
    starts = [*sorted(map(created_at, jobs))[1:], complete_at(run)]
    return {"first Job": first} | {
        f"after Job {at}": start - end for at, (end, start) in enumerate(zip(ends, starts, strict=True), start=1)
    }


def complete_at(run: Plain) -> float:
    return datetime.fromisoformat(condition(run, "Complete")["lastTransitionTime"]).timestamp()


def test_tarpits_of_one_namespace_cost_a_run_of_another_nothing(tarpits: FleetNamespace, namespace: FleetNamespace) -> None:
    namespace.start("north", **SHORT)
    namespace.wait_until_complete()
    beside = open_connections(tarpits)
    namespace.wait("every Job has finished", lambda: all_jobs_finished(namespace.kubectl))
    found = reactions(namespace)

    print(f"seconds to react, beside {beside} calls of tarpits: {found}")  # noqa: T201
    assert beside > 1, "the tarpits held nothing up while the honest run took place"
    assert max(found.values()) < REACTION_SECONDS


def test_a_run_with_a_tarpit_says_what_is_wrong_with_its_store(tarpits: FleetNamespace) -> None:
    run = tarpits.wait_for_reason("StoreTooSlow", name="tarpit-0")

    assert "tarpit.e2e-tarpits" in condition(run, "Progressing")["message"]
