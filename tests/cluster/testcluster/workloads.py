"""The cluster's initial workloads: the name server's Service, and MinIO with its bucket and its Secret."""

import os
import secrets
from typing import Any

from testcluster import configs
from testcluster.layout import DNS_SERVICE, HOST, STORE_SERVICE, Layout

STORE_NAMESPACE = "minio"
STORE_PORT = 9000
STORE_ENDPOINT = f"http://minio.{STORE_NAMESPACE}:{STORE_PORT}"
STORE_SECRET = "fedpipe-store"  # noqa: S105 - the Secret's name
BUCKET = "fedpipe"
USER = 65532
"""The user who owns the buckets' folder."""

Object = dict[str, Any]


def name_service() -> list[Object]:
    """The DNS Service of all pods; its endpoint is a process of this machine, not a pod."""
    ports = [{"name": f"dns-{protocol.lower()}", "port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": DNS_SERVICE, "ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{"addresses": [HOST], "conditions": {"ready": True}}],
        },
    ]


def new_credentials() -> dict[str, str]:
    """A new key pair for the store, under the keys that a run's Secret has."""
    return {"AWS_ACCESS_KEY_ID": secrets.token_hex(8), "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}


def store_secret(namespace: str, credentials: dict[str, str]) -> Object:
    """The Secret with the credentials for the runs of a namespace."""
    metadata = {"name": STORE_SECRET, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": credentials}


def store(layout: Layout, credentials: dict[str, str]) -> list[Object]:
    """MinIO: one pod on any node; its buckets are in a folder of this machine, so that they outlive the pod."""
    metadata = {"name": "minio", "namespace": STORE_NAMESPACE, "labels": {"app": "minio"}}
    ports = [{"name": "s3", "port": STORE_PORT, "targetPort": STORE_PORT}]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STORE_NAMESPACE}},
        store_secret(STORE_NAMESPACE, credentials),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": STORE_SERVICE, "selector": {"app": "minio"}, "ports": ports},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": {"app": "minio"}},
                "template": {"metadata": {"labels": {"app": "minio"}}, "spec": _store_pod(layout)},
            },
        },
    ]


def _store_pod(layout: Layout) -> Object:
    keys = {"MINIO_ROOT_USER": "AWS_ACCESS_KEY_ID", "MINIO_ROOT_PASSWORD": "AWS_SECRET_ACCESS_KEY"}
    container = {
        "name": "minio",
        "image": configs.STORE,
        "args": ["server", "/data"],
        "env": [
            *({"name": name, "valueFrom": {"secretKeyRef": {"name": STORE_SECRET, "key": key}}} for name, key in keys.items()),
            *({"name": name, "value": "off"} for name in ("MINIO_BROWSER", "MINIO_UPDATE")),
        ],
        "ports": [{"containerPort": STORE_PORT}],
        "readinessProbe": {"httpGet": {"path": "/minio/health/ready", "port": STORE_PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "securityContext": {"runAsUser": USER, "runAsGroup": USER, "runAsNonRoot": True},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 2,
        "tolerations": [{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
        "containers": [container],
        "volumes": [{"name": "data", "hostPath": {"path": str(layout.store), "type": "Directory"}}],
    }


def make_bucket(layout: Layout) -> None:
    """Create the bucket, which is a subfolder of MinIO's folder."""
    for folder in (layout.store, layout.store / BUCKET):
        folder.mkdir(exist_ok=True)
        os.chown(folder, USER, USER)
