"""The manifests of the benchmark: nodes, sites, runs, RBAC; and the configuration files of the API server and kwok."""

from pathlib import Path
from typing import Any

import yaml

Plain = dict[str, Any]

NAMESPACE = "benchmark"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:operator"
"""The operator's user, with exactly the permissions of the chart's role."""
CRDS = ("crd/federatedfinetunes.fedpipe.io", "crd/edgesites.fedpipe.io")
BUCKET = "fedpipe"
SECRET = "store"  # noqa: S105 -- the Secret's name

_RULES = Path(__file__).parents[2] / "charts" / "fedpipe" / "files" / "rules"
_RBAC = "rbac.authorization.k8s.io"


def foundations(store_keys: dict[str, str]) -> list[Plain]:
    """The namespace, the operator's role, the store's keys, and one volume for all sites."""
    files = ((_RULES / file).read_text().replace("RELEASE", "fedpipe") for file in ("operator.yaml", "nodes.yaml", "lease.yaml"))
    rules = [rule for text in files for rule in yaml.safe_load(text)]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": "operator"}, "rules": rules},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": "operator"},
            "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": OPERATOR}],
        },
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET, "namespace": NAMESPACE}, "stringData": store_keys},
        *_volume(),
    ]


def listed(wanted: list[Plain]) -> Plain:
    """The objects as one List."""
    return {"apiVersion": "v1", "kind": "List", "items": wanted}


def _volume() -> list[Plain]:
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    claimed = {"capacity": {"storage": "1Gi"}, "hostPath": {"path": "/nothing"}, "claimRef": {"name": "data", "namespace": NAMESPACE}}
    request = {"resources": {"requests": {"storage": "1Gi"}}, "volumeName": "data"}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "data"}, "spec": common | claimed},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": NAMESPACE},
            "spec": common | request,
        },
    ]


def node(number: int) -> Plain:
    """A node that kwok keeps Ready; it is the pool of one run's sites."""
    resources = {"cpu": "128", "memory": "1Ti", "pods": "1000"}
    labels = {"fedpipe.io/pool": f"pool-{number:03d}", "kubernetes.io/hostname": f"node-{number:03d}"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node-{number:03d}", "labels": labels},
        "status": {"capacity": resources, "allocatable": resources},
    }


def site(number: int, run: int) -> Plain:
    """A site of this run's fleet."""
    return {
        "apiVersion": "fedpipe.io/v1alpha1",
        "kind": "EdgeSite",
        "metadata": {"name": f"site-{number:04d}", "namespace": NAMESPACE, "labels": {"fleet": f"fleet-{run:03d}"}},
        "spec": {
            "nodeSelector": {"fedpipe.io/pool": f"pool-{run:03d}"},
            "capacity": {"cpu": 2, "memory": "8Gi", "bandwidth": {"up": "100M", "down": "1G"}},
            "data": {
                "train": "train.jsonl",
                "validation": "validation.jsonl",
                "volume": {"persistentVolumeClaim": {"claimName": "data"}},
            },
        },
    }


def run(number: int, rounds: int, endpoint: str) -> Plain:
    """A run over its fleet, as a user writes it; the ranks fit the stand-in's small weights."""
    return {
        "apiVersion": "fedpipe.io/v1alpha1",
        "kind": "FederatedFineTune",
        "metadata": {"name": f"run-{number:03d}", "namespace": NAMESPACE},
        "spec": {
            "model": {"source": "hf://benchmark/base@main"},
            "task": {"type": "SequenceClassification", "labels": ["a", "b", "c"], "maxLength": 64},
            "sites": {"selector": {"matchLabels": {"fleet": f"fleet-{number:03d}"}}},
            "rounds": {"count": rounds, "deadline": "8m"},
            "planning": {"bits": [4, 16], "ranks": [0, 4, 8], "batchSizes": [8, 16]},
            "store": {"bucket": BUCKET, "endpoint": endpoint, "credentialsSecretRef": {"name": SECRET}},
        },
    }


def audit_policy() -> Plain:
    """The audit policy: every call of the operator, with the body if it writes a run's status, and the Job controller's status writes."""
    group = [{"group": "fedpipe.io", "resources": ["federatedfinetunes/status"]}]
    ends = [{"group": "batch", "resources": ["jobs/status"]}]
    controller = ["system:serviceaccount:kube-system:job-controller"]
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Request", "users": [OPERATOR], "resources": group, "omitManagedFields": True},
            {"level": "Metadata", "users": [OPERATOR]},
            {"level": "Metadata", "users": controller, "resources": ends},
            {"level": "None"},
        ],
    }


def stages() -> list[Plain]:
    """Stages of kwok: nodes are Ready, a bound pod runs after a second, a deleted pod is removed. The stand-in ends the pods."""
    gone = [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}]
    waits = [
        {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"},
        {"key": ".status.phase", "operator": "In", "values": ["Pending"]},
        {"key": ".spec.nodeName", "operator": "Exists"},
    ]
    is_ready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    unready = [{"key": is_ready, "operator": "NotIn", "values": ["True"]}]
    return [
        _stage("Node", "node-ready", unready, {"next": {"statusTemplate": _READY}}),
        _stage("Pod", "pod-ready", waits, {"delay": {"durationMilliseconds": 1000}, "next": {"statusTemplate": _RUNNING}}),
        _stage("Pod", "pod-delete", gone, {"next": {"delete": True}}),
    ]


def _stage(kind: str, name: str, expressions: list[Any], rest: Plain) -> Plain:
    of = {"resourceRef": {"apiGroup": "v1", "kind": kind}, "selector": {"matchExpressions": expressions}}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": of | rest}


_READY = """
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- lastHeartbeatTime: {{ $now | Quote }}
  lastTransitionTime: {{ $now | Quote }}
  message: {{ .message | Quote }}
  reason: {{ .reason | Quote }}
  status: {{ .status | Quote }}
  type: {{ .type | Quote }}
{{ end }}
phase: Running
"""
_RUNNING = """
{{ $now := Now }}
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: Ready, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: ContainersReady, status: "True", lastTransitionTime: {{ $now | Quote }}}
containerStatuses:
{{ range .spec.containers }}
- image: {{ .image | Quote }}
  imageID: ""
  name: {{ .name | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
phase: Running
startTime: {{ $now | Quote }}
"""
