"""The processes of the control plane: etcd, API server, controllers, scheduler, proxy, name server, image registry."""

from functools import partial

from testcluster import network
from testcluster.layout import (
    API_PORT,
    DNS_HEALTH_PORT,
    ETCD_PEER_PORT,
    ETCD_PORT,
    HOST,
    POLICY_QUEUE,
    POLICY_TABLE,
    REGISTRY,
    SERVICES,
    Layout,
)
from testcluster.processes import Daemon, answers
from testcluster.programs import binary


def etcd(layout: Layout) -> Daemon:
    """The API server's store, on loopback, which pods cannot reach."""
    client, peer = f"http://127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PEER_PORT}"
    argv = (
        *(str(binary(layout, "etcd")), "--name", "one", "--data-dir", str(layout.run / "etcd"), "--unsafe-no-fsync"),
        *("--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer),
        *("--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"),
    )
    return Daemon("etcd", argv, partial(answers, f"{client}/health"))


def registry(layout: Layout) -> Daemon:
    """Where the nodes pull images from."""
    return Daemon(
        "registry",
        (str(binary(layout, "registry")), "serve", str(layout.run / "registry.json")),
        partial(answers, f"http://{REGISTRY}/v2/"),
    )


def api_server(layout: Layout) -> Daemon:
    """The API server. Pods of a lost node are evicted after 20 seconds instead of five minutes."""
    argv = (
        str(binary(layout, "kube-apiserver")),
        *(f"--bind-address={HOST}", f"--advertise-address={HOST}", f"--secure-port={API_PORT}"),
        *(f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}", f"--service-cluster-ip-range={SERVICES}"),
        *("--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true"),
        f"--token-auth-file={layout.run / 'tokens.csv'}",
        *(f"--client-ca-file={layout.certificate('ca')}", "--kubelet-preferred-address-types=InternalIP"),
        *(f"--tls-cert-file={layout.certificate('api')}", f"--tls-private-key-file={layout.key('api')}"),
        f"--kubelet-client-certificate={layout.certificate('api-to-kubelet')}",
        f"--kubelet-client-key={layout.key('api-to-kubelet')}",
        f"--service-account-key-file={layout.key('service-accounts')}",
        f"--service-account-signing-key-file={layout.key('service-accounts')}",
        "--service-account-issuer=https://kubernetes.default.svc",
        *("--default-not-ready-toleration-seconds=20", "--default-unreachable-toleration-seconds=20", "--profiling=false"),
    )
    return Daemon("kube-apiserver", argv, partial(answers, f"https://{HOST}:{API_PORT}/readyz"))


def controller_manager(layout: Layout) -> Daemon:
    """The controllers. A node without a heartbeat for 16 seconds is lost."""
    argv = (
        str(binary(layout, "kube-controller-manager")),
        *(f"--kubeconfig={layout.user('kube-controller-manager')}", "--leader-elect=false", "--bind-address=127.0.0.1"),
        *("--use-service-account-credentials", f"--root-ca-file={layout.certificate('ca')}"),
        f"--service-account-private-key-file={layout.key('service-accounts')}",
        *("--node-monitor-period=2s", "--node-monitor-grace-period=16s", "--profiling=false"),
    )
    return Daemon("kube-controller-manager", argv, partial(answers, "https://127.0.0.1:10257/healthz"))


def scheduler(layout: Layout) -> Daemon:
    """The scheduler."""
    config = f"--kubeconfig={layout.user('kube-scheduler')}"
    argv = (str(binary(layout, "kube-scheduler")), config, "--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false")
    return Daemon("kube-scheduler", argv, partial(answers, "https://127.0.0.1:10259/healthz"))


def proxy(layout: Layout) -> Daemon:
    """Routes Service addresses by this machine's iptables."""
    argv = (str(binary(layout, "kube-proxy")), f"--config={layout.run / 'kube-proxy.json'}")
    return Daemon("kube-proxy", argv, partial(answers, "http://127.0.0.1:10256/livez"))


def name_server(layout: Layout) -> Daemon:
    """The name server for the cluster's names."""
    argv = (str(binary(layout, "coredns")), "-conf", str(layout.run / "Corefile"))
    return Daemon("coredns", argv, partial(answers, f"http://127.0.0.1:{DNS_HEALTH_PORT}/health"))


def network_policies(layout: Layout) -> Daemon:
    """Decides on the first packet of each connection from or to a pod, by the NetworkPolicies; `network` has the rules that queue it."""
    argv = (
        *(str(binary(layout, "network-policies")), f"--kubeconfig={layout.kubeconfig}"),
        *(f"--queue={POLICY_QUEUE}", f"--table={POLICY_TABLE}"),
    )
    return Daemon("network-policies", argv, network.policies_are_enforced)


def foundations(layout: Layout) -> list[Daemon]:
    """The processes that the API server and the nodes need first."""
    return [etcd(layout), registry(layout)]


def around_the_api(layout: Layout) -> list[Daemon]:
    """The processes that need a ready API server: before that, they exit because their RBAC rules do not exist."""
    return [controller_manager(layout), scheduler(layout), name_server(layout), network_policies(layout)]


def around_the_nodes(layout: Layout) -> list[Daemon]:
    """The processes that look up their node at the start, and retry only much later."""
    return [proxy(layout)]
