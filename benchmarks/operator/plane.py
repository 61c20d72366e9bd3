"""A control plane without kubelets, on its own ports of loopback, so that it can run beside the cluster of the end-to-end tests.

etcd, API server, controllers, scheduler, MinIO, and kwok instead of nodes; `tests/cluster` builds the programs.
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
from socket import AF_INET

import objects
import psutil
from testcluster import certificates, cgroups
from testcluster.kubectl import kubectl
from testcluster.layout import Layout, default_layout
from testcluster.processes import Daemon, answers, running, start, stop, wait
from testcluster.programs import binary, build_all

API_PORT, ETCD_PORT, ETCD_PEER_PORT, CONTROLLER_PORT, SCHEDULER_PORT = 16443, 23379, 23380, 11257, 11259
STORE_PORT, CONSOLE_PORT, HEALTH_PORT, STORE_LOG_PORT = 19000, 19001, 18080, 18081
API = f"https://127.0.0.1:{API_PORT}"
_ADDRESSES = [one.address for interface in psutil.net_if_addrs().values() for one in interface if one.family is AF_INET]
STORE_HOST = next(address for address in _ADDRESSES if not address.startswith("127."))
"""The operator connects to no loopback address for a run."""
STORE = f"http://{STORE_HOST}:{STORE_PORT}"
STORE_KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
ADMIN = "admin"
CONTROLLERS, SCHEDULER = "system:kube-controller-manager", "system:kube-scheduler"

_GROUP = "fedpipe-benchmark"
_SERVICES = "10.96.0.0/16"
_CONTROLLERS = (
    *("job-controller", "garbage-collector-controller", "ttl-after-finished-controller", "pod-garbage-collector-controller"),
    *("namespace-controller", "serviceaccount-controller", "node-lifecycle-controller", "persistentvolume-binder-controller"),
)
_API_RATES = ("--kube-api-qps=1000", "--kube-api-burst=2000")
"""The controllers' default limit of 20 calls a second would be the bottleneck."""


@dataclass(frozen=True)
class BenchmarkLayout(Layout):
    """The programs of the test cluster, and a separate folder for the benchmark's state."""

    @property
    def run(self) -> Path:
        """The benchmark's state; removed at the end."""
        return self.cache.parent / "benchmark-operator"

    @property
    def audit(self) -> Path:
        """The API server's audit log."""
        return self.run / "audit.log"


def benchmark_layout() -> BenchmarkLayout:
    """The layout beside the test cluster's folder."""
    return BenchmarkLayout(default_layout().cache)


def up(layout: BenchmarkLayout) -> None:
    """Start everything but the operator."""
    build_all(layout)
    _write_files(layout)
    for daemons in ([_etcd(layout), _store(layout)], [_api_server(layout)], [_controllers(layout), _scheduler(layout)], [_kwok(layout)]):
        for daemon in daemons:
            start(layout, daemon)
        for daemon in daemons:
            wait(layout, daemon)
    kubectl(layout, "apply", "--server-side", "-f", str(Path(__file__).parents[2] / "crds"))
    kubectl(layout, "wait", "--for=jsonpath={.status.acceptedNames.kind}", "--timeout=60s", *objects.CRDS)
    kubectl(layout, "wait", "--for=condition=Established", "--timeout=60s", *objects.CRDS)
    kubectl(layout, "apply", "--server-side", "-f", "-", given=json.dumps(objects.listed(objects.foundations(STORE_KEYS))))
    kubectl(layout, "wait", "--for=create", f"--namespace={objects.NAMESPACE}", "serviceaccount/default", "--timeout=60s")
    kubectl(layout, "wait", "--for=jsonpath={.status.phase}=Bound", f"--namespace={objects.NAMESPACE}", "pvc/data", "--timeout=60s")


def start_operator(layout: BenchmarkLayout, settings: Mapping[str, str]) -> Daemon:
    """Start the operator as a process with its own role."""
    environment = {"KUBECONFIG": str(layout.user("operator")), "FEDPIPE_HEALTH_PORT": str(HEALTH_PORT), **settings}
    argv = ("env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-m", "fedpipe_operator")
    daemon = _daemon("operator", argv, partial(answers, f"http://127.0.0.1:{HEALTH_PORT}/readyz"))
    start(layout, daemon)
    wait(layout, daemon)
    return daemon


def down(layout: BenchmarkLayout, *, keep: bool = False) -> None:
    """Stop everything and, unless `keep`, remove its state."""
    if layout.run.exists():
        for name in running(layout):
            stop(layout, name, at_once=True)
    cgroups.kill(_GROUP)
    cgroups.remove(_GROUP)
    if not keep:
        shutil.rmtree(layout.run, ignore_errors=True)


def _write_files(layout: BenchmarkLayout) -> None:
    certificates.make_all(layout)
    (layout.run / "store" / objects.BUCKET).mkdir(parents=True, exist_ok=True)
    (layout.run / "users").mkdir(exist_ok=True)
    (layout.run / "audit-policy.json").write_text(json.dumps(objects.audit_policy()))
    (layout.run / "kwok.json").write_text("\n---\n".join(json.dumps(one) for one in objects.stages()))
    tokens = {user: secrets.token_hex(24) for user in (ADMIN, CONTROLLERS, SCHEDULER, objects.OPERATOR)}
    groups = {ADMIN: ",system:masters"}
    (layout.run / "tokens.csv").write_text("".join(f"{token},{user},{user}{groups.get(user, '')}\n" for user, token in tokens.items()))
    for user, token in tokens.items():
        file = layout.kubeconfig if user == ADMIN else layout.user(user.rpartition(":")[2])
        file.write_text(_kubeconfig(token, layout.certificate("ca").read_bytes()))
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


def _daemon(name: str, argv: tuple[str, ...], is_healthy: Callable[[], bool]) -> Daemon:
    return Daemon(name, argv, is_healthy, f"{_GROUP}/daemons")


def _etcd(layout: BenchmarkLayout) -> Daemon:
    client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PEER_PORT}"
    argv = (
        str(binary(layout, "etcd")),
        *("--name", "one", "--data-dir", str(layout.run / "etcd"), "--unsafe-no-fsync", "--quota-backend-bytes=8589934592"),
        *("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer),
        *("--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"),
    )
    return _daemon("etcd", argv, partial(answers, f"{client}/health"))


def _api_server(layout: BenchmarkLayout) -> Daemon:
    argv = (
        str(binary(layout, "kube-apiserver")),
        *("--bind-address=127.0.0.1", "--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none", f"--secure-port={API_PORT}"),
        *(f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}", f"--service-cluster-ip-range={_SERVICES}", "--event-ttl=5m"),
        *("--authorization-mode=RBAC", f"--token-auth-file={layout.run / 'tokens.csv'}", "--profiling=false"),
        *(f"--tls-cert-file={layout.certificate('api')}", f"--tls-private-key-file={layout.key('api')}"),
        f"--service-account-key-file={layout.key('service-accounts')}",
        f"--service-account-signing-key-file={layout.key('service-accounts')}",
        "--service-account-issuer=https://kubernetes.default.svc",
        *(f"--audit-policy-file={layout.run / 'audit-policy.json'}", f"--audit-log-path={layout.audit}"),
        *("--audit-log-mode=batch", "--audit-log-maxsize=100000"),
    )
    return _daemon("kube-apiserver", argv, partial(answers, f"{API}/readyz"))


def _controllers(layout: BenchmarkLayout) -> Daemon:
    argv = (
        str(binary(layout, "kube-controller-manager")),
        *(f"--kubeconfig={layout.user('kube-controller-manager')}", "--leader-elect=false", "--use-service-account-credentials"),
        *("--bind-address=127.0.0.1", f"--secure-port={CONTROLLER_PORT}", f"--controllers={','.join(_CONTROLLERS)}", "--profiling=false"),
        *(f"--service-account-private-key-file={layout.key('service-accounts')}", "--concurrent-job-syncs=20", *_API_RATES),
    )
    return _daemon("kube-controller-manager", argv, partial(answers, f"https://127.0.0.1:{CONTROLLER_PORT}/healthz"))


def _scheduler(layout: BenchmarkLayout) -> Daemon:
    argv = (
        str(binary(layout, "kube-scheduler")),
        *(f"--kubeconfig={layout.user('kube-scheduler')}", "--leader-elect=false", "--profiling=false"),
        *("--bind-address=127.0.0.1", f"--secure-port={SCHEDULER_PORT}", *_API_RATES),
    )
    return _daemon("kube-scheduler", argv, partial(answers, f"https://127.0.0.1:{SCHEDULER_PORT}/healthz"))


def _kwok(layout: BenchmarkLayout) -> Daemon:
    argv = (
        str(binary(layout, "kwok")),
        *(f"--kubeconfig={layout.kubeconfig}", f"--config={layout.run / 'kwok.json'}", "--manage-all-nodes"),
        *("--node-lease-duration-seconds=40", "--node-ip=127.0.0.1"),
    )
    return _daemon("kwok", argv, lambda: True)


def _store(layout: BenchmarkLayout) -> Daemon:
    environment = {
        "MINIO_ROOT_USER": STORE_KEYS["AWS_ACCESS_KEY_ID"],
        "MINIO_ROOT_PASSWORD": STORE_KEYS["AWS_SECRET_ACCESS_KEY"],
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
        "MINIO_AUDIT_WEBHOOK_ENABLE_log": "on",
        "MINIO_AUDIT_WEBHOOK_ENDPOINT_log": f"http://127.0.0.1:{STORE_LOG_PORT}/",
    }
    argv = (
        *(
            "env",
            *(f"{name}={value}" for name, value in environment.items()),
            str(binary(layout, "minio")),
            "server",
            str(layout.run / "store"),
        ),
        *(f"--address={STORE_HOST}:{STORE_PORT}", f"--console-address=127.0.0.1:{CONSOLE_PORT}", "--quiet"),
    )
    return _daemon("minio", argv, partial(answers, f"{STORE}/minio/health/live"))
