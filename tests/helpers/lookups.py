"""As much of an API server as Helm asks when a chart looks up objects: it stands in for a cluster, without one."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

Plain = dict[str, Any]

_KINDS: Final = {
    "/api/v1": ["Service", "ServiceAccount", "Pod", "ConfigMap"],
    "/apis/discovery.k8s.io/v1": ["EndpointSlice"],
    "/apis/rbac.authorization.k8s.io/v1": ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"],
    "/apis/networking.k8s.io/v1": ["NetworkPolicy"],
    "/apis/apps/v1": ["Deployment"],
    "/apis/apiextensions.k8s.io/v1": ["CustomResourceDefinition"],
    "/apis/admissionregistration.k8s.io/v1": ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"],
}
"""What is served, by the paths of their group and version: what the chart looks up, and what it makes, which Helm checks."""
_OF_THE_CLUSTER: Final = ("Cluster", "Custom", "Validating")
"""How the kinds begin whose objects are in no namespace."""
_SERVICE: Final = "/api/v1/namespaces/default/services/kubernetes"
_SLICE: Final = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"


def api_server_objects(cluster_ips: list[str], endpoints: list[str], ports: list[int]) -> Mapping[str, Plain]:
    """The Service `kubernetes` and the endpoints behind it, by their paths."""
    name = {"metadata": {"name": "kubernetes", "namespace": "default"}}
    service = {"apiVersion": "v1", "kind": "Service", "spec": {"clusterIPs": cluster_ips}} | name
    behind = {"ports": [{"name": "https", "port": port} for port in ports], "endpoints": [{"addresses": [one]} for one in endpoints]}
    return {_SERVICE: service, _SLICE: {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"} | name | behind}


@contextmanager
def looked_up(objects: Mapping[str, Plain], asked: list[str] | None = None) -> Iterator[list[str]]:
    """Helm's options with which it finds these objects and no others; `asked` receives the paths that it asks for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if asked is not None:
                asked.append(path)
            found = _discovery(path) or objects.get(path)
            body = json.dumps(
                found or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            ).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield ["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", f"http://127.0.0.1:{server.server_port}"]
        server.shutdown()


def _discovery(path: str) -> Plain | None:
    """What a client asks before it asks for an object; also an empty list of each kind."""
    if path == "/version":
        return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [one.removeprefix("/apis/") for one in _KINDS if one.startswith("/apis/")]
        return {"kind": "APIGroupList", "groups": [_group(one) for one in groups]}
    if path in _KINDS:
        version = path.removeprefix("/apis/").removeprefix("/api/")
        return {"kind": "APIResourceList", "groupVersion": version, "resources": list(map(_resource, _KINDS[path]))}
    kind = next((kind for kinds in _KINDS.values() for kind in kinds if _plural(kind) == path.rpartition("/")[2]), None)
    return {"kind": f"{kind}List", "apiVersion": "v1", "items": []} if kind else None


def _plural(kind: str) -> str:
    return f"{kind.lower().removesuffix('y')}ies" if kind.endswith("y") else f"{kind.lower()}s"


def _resource(kind: str) -> Plain:
    is_namespaced = not kind.startswith(_OF_THE_CLUSTER)
    return {"name": _plural(kind), "singularName": "", "namespaced": is_namespaced, "kind": kind, "verbs": ["get", "list"]}


def _group(version: str) -> Plain:
    named = {"groupVersion": version, "version": version.rpartition("/")[2]}
    return {"name": version.partition("/")[0], "versions": [named], "preferredVersion": named}
