"""A control plane without kubelets, on loopback and ports of its own: it may run beside the cluster of the end-to-end tests.

etcd, API server, controllers, scheduler, kwok in the place of the nodes, MinIO; the programs are those that `tests/cluster` builds.
"""

import base64
import json
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import objects
from testcluster import certificates, cgroups
from testcluster.kubectl import kubectl
from testcluster.layout import Layout, default_layout
from testcluster.processes import Daemon, answers, running, start, stop, wait
from testcluster.programs import binary, build_all

API_PORT, ETCD_PORT, ETCD_PEER_PORT, CONTROLLER_PORT, SCHEDULER_PORT = 16443, 23379, 23380, 11257, 11259
STORE_PORT, CONSOLE_PORT, HEALTH_PORT, STORE_LOG_PORT = 19000, 19001, 18080, 18081
API = f"https://127.0.0.1:{API_PORT}"
STORE = f"http://127.0.0.1:{STORE_PORT}"
STORE_KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
ADMIN = "admin"
CONTROLLERS, SCHEDULER = "system:kube-controller-manager", "system:kube-scheduler"

_GROUP = "fedpipe-benchmark"
_SERVICES = "10.96.0.0/16"
_AT_WORK = (
    *("job-controller", "garbage-collector-controller", "ttl-after-finished-controller", "pod-garbage-collector-controller"),
    *("namespace-controller", "serviceaccount-controller", "node-lifecycle-controller", "persistentvolume-binder-controller"),
)
_UNHURRIED = ("--kube-api-qps=1000", "--kube-api-burst=2000")
"""Without it the controllers' own limit of 20 calls a second would be what is measured."""


@dataclass(frozen=True)
class Place(Layout):
    """The programs of the test cluster, and a folder of our own for all that runs."""

    @property
    def run(self) -> Path:
        """All state; removed at the end."""
        return self.cache.parent / "benchmark-operator"

    @property
    def audit(self) -> Path:
        """What the API server was asked, by whom and when."""
        return self.run / "audit.log"


def default_place() -> Place:
    """Beside the test cluster's folder."""
    return Place(default_layout().cache)


def up(place: Place) -> None:
    """Everything but the operator."""
    build_all(place)
    _write_files(place)
    for daemons in ([_etcd(place), _store(place)], [_api_server(place)], [_controllers(place), _scheduler(place)], [_kwok(place)]):
        for daemon in daemons:
            start(place, daemon)
        for daemon in daemons:
            wait(place, daemon)
    kubectl(place, "apply", "--server-side", "-f", str(Path(__file__).parents[2] / "crds"))
    kubectl(place, "wait", "--for=jsonpath={.status.acceptedNames.kind}", "--timeout=60s", *objects.CRDS)
    kubectl(place, "wait", "--for=condition=Established", "--timeout=60s", *objects.CRDS)
    kubectl(place, "apply", "--server-side", "-f", "-", given=json.dumps(objects.listed(objects.foundations(STORE_KEYS))))
    kubectl(place, "wait", "--for=create", f"--namespace={objects.NAMESPACE}", "serviceaccount/default", "--timeout=60s")
    kubectl(place, "wait", "--for=jsonpath={.status.phase}=Bound", f"--namespace={objects.NAMESPACE}", "pvc/data", "--timeout=60s")


def start_operator(place: Place, settings: Mapping[str, str]) -> Daemon:
    """The operator, as its own process, by its own role."""
    told = {"KUBECONFIG": str(place.user("operator")), "FEDPIPE_HEALTH_PORT": str(HEALTH_PORT), **settings}
    argv = ("env", *(f"{name}={value}" for name, value in told.items()), sys.executable, "-m", "fedpipe_operator")
    daemon = _daemon("operator", argv, partial(answers, f"http://127.0.0.1:{HEALTH_PORT}/healthz"))
    start(place, daemon)
    wait(place, daemon)
    return daemon


def down(place: Place, *, keep: bool = False) -> None:
    """End all of it, and forget it."""
    if place.run.exists():
        for name in running(place):
            stop(place, name, at_once=True)
    cgroups.kill(_GROUP)
    cgroups.remove(_GROUP)
    if not keep:
        shutil.rmtree(place.run, ignore_errors=True)


def _write_files(place: Place) -> None:
    certificates.make_all(place)
    (place.run / "store" / objects.BUCKET).mkdir(parents=True, exist_ok=True)
    (place.run / "users").mkdir(exist_ok=True)
    (place.run / "audit-policy.json").write_text(json.dumps(objects.audit_policy()))
    (place.run / "kwok.json").write_text("\n---\n".join(json.dumps(one) for one in objects.stages()))
    tokens = {user: secrets.token_hex(24) for user in (ADMIN, CONTROLLERS, SCHEDULER, objects.OPERATOR)}
    groups = {ADMIN: ",system:masters"}
    (place.run / "tokens.csv").write_text("".join(f"{token},{user},{user}{groups.get(user, '')}\n" for user, token in tokens.items()))
    for user, token in tokens.items():
        file = place.kubeconfig if user == ADMIN else place.user(user.rpartition(":")[2])
        file.write_text(_kubeconfig(token, place.certificate("ca").read_bytes()))
        file.chmod(0o600)


def _kubeconfig(token: str, authority: bytes) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": API, "certificate-authority-data": base64.b64encode(authority).decode()}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    return json.dumps(document)


def _daemon(name: str, argv: tuple[str, ...], is_well: Callable[[], bool]) -> Daemon:
    return Daemon(name, argv, is_well, f"{_GROUP}/daemons")


def _etcd(place: Place) -> Daemon:
    client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PEER_PORT}"
    argv = (
        str(binary(place, "etcd")),
        *("--name", "one", "--data-dir", str(place.run / "etcd"), "--unsafe-no-fsync", "--quota-backend-bytes=8589934592"),
        *("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer),
        *("--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"),
    )
    return _daemon("etcd", argv, partial(answers, f"{client}/health"))


def _api_server(place: Place) -> Daemon:
    argv = (
        str(binary(place, "kube-apiserver")),
        *("--bind-address=127.0.0.1", "--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none", f"--secure-port={API_PORT}"),
        *(f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}", f"--service-cluster-ip-range={_SERVICES}", "--event-ttl=5m"),
        *("--authorization-mode=RBAC", f"--token-auth-file={place.run / 'tokens.csv'}", "--profiling=false"),
        *(f"--tls-cert-file={place.certificate('api')}", f"--tls-private-key-file={place.key('api')}"),
        f"--service-account-key-file={place.key('service-accounts')}",
        f"--service-account-signing-key-file={place.key('service-accounts')}",
        "--service-account-issuer=https://kubernetes.default.svc",
        *(f"--audit-policy-file={place.run / 'audit-policy.json'}", f"--audit-log-path={place.audit}"),
        *("--audit-log-mode=batch", "--audit-log-maxsize=100000"),
    )
    return _daemon("kube-apiserver", argv, partial(answers, f"{API}/readyz"))


def _controllers(place: Place) -> Daemon:
    argv = (
        str(binary(place, "kube-controller-manager")),
        *(f"--kubeconfig={place.user('kube-controller-manager')}", "--leader-elect=false", "--use-service-account-credentials"),
        *("--bind-address=127.0.0.1", f"--secure-port={CONTROLLER_PORT}", f"--controllers={','.join(_AT_WORK)}", "--profiling=false"),
        *(f"--service-account-private-key-file={place.key('service-accounts')}", "--concurrent-job-syncs=20", *_UNHURRIED),
    )
    return _daemon("kube-controller-manager", argv, partial(answers, f"https://127.0.0.1:{CONTROLLER_PORT}/healthz"))


def _scheduler(place: Place) -> Daemon:
    argv = (
        str(binary(place, "kube-scheduler")),
        *(f"--kubeconfig={place.user('kube-scheduler')}", "--leader-elect=false", "--profiling=false"),
        *("--bind-address=127.0.0.1", f"--secure-port={SCHEDULER_PORT}", *_UNHURRIED),
    )
    return _daemon("kube-scheduler", argv, partial(answers, f"https://127.0.0.1:{SCHEDULER_PORT}/healthz"))


def _kwok(place: Place) -> Daemon:
    argv = (
        str(binary(place, "kwok")),
        *(f"--kubeconfig={place.kubeconfig}", f"--config={place.run / 'kwok.json'}", "--manage-all-nodes"),
        *("--node-lease-duration-seconds=40", "--node-ip=127.0.0.1"),
    )
    return _daemon("kwok", argv, lambda: True)


def _store(place: Place) -> Daemon:
    told = {
        "MINIO_ROOT_USER": STORE_KEYS["AWS_ACCESS_KEY_ID"],
        "MINIO_ROOT_PASSWORD": STORE_KEYS["AWS_SECRET_ACCESS_KEY"],
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
        "MINIO_AUDIT_WEBHOOK_ENABLE_log": "on",
        "MINIO_AUDIT_WEBHOOK_ENDPOINT_log": f"http://127.0.0.1:{STORE_LOG_PORT}/",
    }
    argv = (
        *("env", *(f"{name}={value}" for name, value in told.items()), str(binary(place, "minio")), "server", str(place.run / "store")),
        *(f"--address=127.0.0.1:{STORE_PORT}", f"--console-address=127.0.0.1:{CONSOLE_PORT}", "--quiet"),
    )
    return _daemon("minio", argv, partial(answers, f"{STORE}/minio/health/live"))
