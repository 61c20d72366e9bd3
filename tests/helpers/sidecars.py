"""A webhook on this machine that injects a container which never ends into the pods of a namespace, as a service mesh does."""

import base64
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from certificates import certificate
from cluster_user import Kubectl, Plain
from serving import serving

from fedpipe_operator.api.meta import LABEL_RUN

NAME: Final = "sidecar"


def with_sidecar(review: Plain, image: str) -> Plain:
    """The answer to the API server's question about a new pod: add a container of this image."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": NAME, "image": image, "securityContext": security}
    patch = [{"op": "add", "path": "/spec/containers/-", "value": container}]
    answer = {
        "uid": review["request"]["uid"],
        "allowed": True,
        "patchType": "JSONPatch",
        "patch": base64.b64encode(json.dumps(patch).encode()).decode(),
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": answer}


def webhook(namespace: str, url: str, pem: str) -> Plain:
    """The configuration by which the API server asks at this URL about the pods of FedPipe in this namespace, and about no other."""
    hook = {
        "name": "sidecars.tests.fedpipe.io",
        "clientConfig": {"url": url, "caBundle": base64.b64encode(pem.encode()).decode()},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "objectSelector": {"matchExpressions": [{"key": LABEL_RUN, "operator": "Exists"}]},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 5,
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": f"sidecars-{namespace}"},
        "webhooks": [hook],
    }


@contextmanager
def injected(kubectl: Kubectl, folder: Path, host: str, image: str) -> Iterator[None]:
    """Inject the container into every new pod of FedPipe in the namespace.

    Args:
        kubectl: of the namespace.
        folder: for the webhook's certificate.
        host: an address of this machine that the API server reaches.
        image: what the container runs.
    """
    file = certificate(folder, host)
    server = ThreadingHTTPServer((host, 0), _handler(image))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    _, _, certificates = file.read_text().partition("-----BEGIN CERTIFICATE-----")
    hook = webhook(kubectl.namespace, f"https://{host}:{server.server_port}/", f"-----BEGIN CERTIFICATE-----{certificates}")
    with server, serving(server):
        try:
            kubectl.apply(hook)
            yield
        finally:
            kubectl("delete", "--ignore-not-found", f"{hook['kind']}/{hook['metadata']['name']}")


def _handler(image: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            data = json.dumps(with_sidecar(review, image)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
