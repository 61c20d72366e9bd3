"""A trainer's pod: a guest that knows nobody, and waits where a queue tells it to."""

from typing import Final

import pytest
from cluster_user import Plain, condition
from testcluster.configs import PAUSE
from wards import POOLS, SHORT, Ward

pytestmark = pytest.mark.e2e

QUEUE: Final = {"kueue.x-k8s.io/queue-name": "wards"}
JOB: Final = "toy-profile-north-a0"
CALL: Final = """
import os, ssl, urllib.error, urllib.request
print("token" if os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token") else "no token")
print(sorted(name for name in os.environ if name.startswith("AWS_")))
try:
    urllib.request.urlopen("https://kubernetes.default.svc/api/v1/namespaces/{namespace}/secrets", context=ssl._create_unverified_context())
except urllib.error.HTTPError as error:
    print(error.code)
"""


GPUS: Final = "nvidia.com/gpu"
SMALL: Final = POOLS["north"]


def one_that_has_all_gpus(ward: Ward) -> Plain:
    """A pod of somebody else on the node of the small pool."""
    (node,) = ward.kubectl.list("nodes", ",".join(map("=".join, SMALL.items())))
    security = {"runAsUser": 65532, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {
        "name": "guest",
        "image": PAUSE,
        "resources": {"limits": {GPUS: node["status"]["allocatable"][GPUS]}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {"securityContext": security, "nodeSelector": SMALL, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "guest"}, "spec": spec}


def queued_run(ward: Ward) -> Plain:
    run = ward.run(rounds={"count": 1})
    run["metadata"]["labels"] = QUEUE
    return run


def progress(ward: Ward) -> str:
    told: str = condition(ward.look(), "Progressing").get("message", "")
    return told


def test_a_job_waits_in_an_outside_queue_and_its_trainer_has_no_credentials(ward: Ward) -> None:
    ward.kubectl.apply(ward.site("north"), queued_run(ward))
    job = ward.wait("the Job is there", lambda: ward.kubectl.list("jobs"))[0]

    assert job["metadata"]["labels"].items() >= QUEUE.items()

    ward.kubectl.patch("job", JOB, {"spec": {"suspend": True}})
    ward.wait("the run tells of the queue", lambda: "north waits for the queue" in progress(ward))
    ward.wait("its pod goes", lambda: ward.kubectl.list("pods") == [])

    ward.kubectl.patch("job", JOB, {"spec": {"suspend": False}})
    pod = ward.trainer_at_work(JOB)
    said = ward.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", CALL.format(namespace=ward.name)).splitlines()
    ward.wait_for("Evaluating")

    assert said[:2] == ["no token", "[]"]
    assert said[2] in ("401", "403")
    assert [pod["spec"]["automountServiceAccountToken"] for pod in ward.kubectl.list("pods")] == [False] * len(ward.kubectl.list("pods"))


def test_a_trainer_waits_until_its_pool_has_a_gpu_free_and_gets_it(ward: Ward) -> None:
    ward.kubectl.apply(one_that_has_all_gpus(ward))
    ward.kubectl("wait", "pod/guest", "--for=condition=Ready", "--timeout=60s")
    accelerator = {"resource": GPUS, "count": 1, "memory": "1Gi"}
    ward.kubectl.apply(ward.site("north", capacity={"cpu": 1, "memory": "2Gi", "accelerator": accelerator}), ward.run(**SHORT))

    ward.wait("the run says what it waits for", lambda: f"Unschedulable: 0/2 nodes are available: 1 Insufficient {GPUS}" in progress(ward))
    ward.kubectl("delete", "pod", "guest", "--force", "--grace-period=0")
    pod = ward.trainer_at_work(JOB)
    ward.wait_for("Evaluating")

    assert pod["spec"]["containers"][0]["resources"]["limits"][GPUS] == "1"
