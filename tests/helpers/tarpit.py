"""A store that answers one byte a second, as a pod of a test's namespace: each call of it takes as long as the operator lets it."""

import os
from typing import Final

from cluster_user import Plain
from fleet_namespace import SECRET, FleetNamespace

PORT: Final = 9000
_SERVER: Final = f"""
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


def start_tarpit(namespace: FleetNamespace) -> None:
    """Start the pod with its Service; return when it is ready."""
    namespace.kubectl.apply(*_manifests(namespace))
    namespace.kubectl("wait", "pod/tarpit", "--for=condition=Ready", "--timeout=60s")


def store_in_tarpit(namespace: FleetNamespace) -> Plain:
    """`spec.store` of a run that names it."""
    return {"bucket": "any", "endpoint": f"http://tarpit.{namespace.name}:{PORT}", "credentialsSecretRef": {"name": SECRET}}


def open_connections(namespace: FleetNamespace) -> int:
    """Connections to it at this moment."""
    lines = namespace.kubectl("exec", "tarpit", "--", "cat", "/proc/net/tcp", "/proc/net/tcp6").splitlines()
    established = "01"
    return sum(f":{PORT:04X}" in line.split()[1] and line.split()[3] == established for line in lines)


def _manifests(namespace: FleetNamespace) -> list[Plain]:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    image = os.environ["FEDPIPE_TRAINER_IMAGE"]
    container = {"name": "tarpit", "image": image, "command": ["python", "-c", _SERVER], "securityContext": security}
    pod_security = {"runAsUser": 65532, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"terminationGracePeriodSeconds": 1, "securityContext": pod_security, "containers": [container]}
    metadata = {"name": "tarpit", "namespace": namespace.name, "labels": {"app": "tarpit"}}
    service = {"selector": {"app": "tarpit"}, "ports": [{"port": PORT}]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]
