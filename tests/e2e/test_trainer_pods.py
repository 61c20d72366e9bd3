"""A trainer's pod has no credentials, and waits for an external queue or for a free GPU."""

import json
from typing import Final

import pytest
from cluster_user import Plain, condition
from fleet_namespace import POOLS, SHORT, FleetNamespace
from local_runs import MANUAL
from testcluster.configs import PAUSE

pytestmark = pytest.mark.e2e

QUEUE: Final = {"kueue.x-k8s.io/queue-name": "e2e"}
JOB: Final = "toy-profile-north-a0"
TRAINING: Final = "toy-train-r1-north-a0"
PROBE: Final = """
import os, ssl, urllib.error, urllib.request
print("token" if os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token") else "no token")
print(sorted(name for name in os.environ if name.startswith("AWS_")))
try:
    urllib.request.urlopen("https://kubernetes.default.svc/api/v1/namespaces/{namespace}/secrets", context=ssl._create_unverified_context())
except urllib.error.HTTPError as error:
    print(error.code)
"""
GPUS: Final = "nvidia.com/gpu"
GPU_IS_MISSING: Final = f"NoAccelerator: the pod claims {GPUS}, and PyTorch"
SMALL: Final = POOLS["north"]


def pod_with_all_gpus(namespace: FleetNamespace) -> Plain:
    """A pod of another workload that occupies the GPUs of the small pool's node."""
    (node,) = namespace.kubectl.list("nodes", ",".join(map("=".join, SMALL.items())))
    security = {"runAsUser": 65532, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    container = {
        "name": "occupant",
        "image": PAUSE,
        "resources": {"limits": {GPUS: node["status"]["allocatable"][GPUS]}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {"securityContext": security, "nodeSelector": SMALL, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "occupant"}, "spec": spec}


def queued_run(namespace: FleetNamespace) -> Plain:
    """A run whose training takes long: it is not done in the seconds that a pod has to end when its Job is suspended."""
    plans = [{"bits": 32, "rank": 4, "steps": 1_000_000}]
    run = namespace.run(rounds={"count": 1, "deadline": "1h"}, planning=MANUAL | {"plans": plans})
    run["metadata"]["labels"] = QUEUE
    return run


def progress(namespace: FleetNamespace) -> str:
    message: str = condition(namespace.get_run(), "Progressing").get("message", "")
    return message


def test_a_job_waits_in_an_external_queue_and_its_trainer_has_no_credentials(namespace: FleetNamespace) -> None:
    namespace.kubectl.apply(namespace.site("north"), queued_run(namespace))
    namespace.wait_for_trainer(TRAINING)

    assert all(job["metadata"]["labels"].items() >= QUEUE.items() for job in namespace.kubectl.list("jobs"))

    job = namespace.job(TRAINING)["metadata"]["name"]
    namespace.kubectl.patch("job", job, {"spec": {"suspend": True}})
    namespace.wait("the run reports the queue", lambda: "north waits for the queue" in progress(namespace))
    namespace.wait("its pod is deleted", lambda: namespace.kubectl.list("pods", f"batch.kubernetes.io/job-name={job}") == [])

    namespace.kubectl.patch("job", job, {"spec": {"suspend": False}})
    pod = namespace.wait_for_trainer(TRAINING)
    printed = namespace.kubectl("exec", pod["metadata"]["name"], "--", "python", "-c", PROBE.format(namespace=namespace.name)).splitlines()
    namespace.wait_for_reason("Training")

    assert printed[:2] == ["no token", "[]"]
    assert printed[2] in ("401", "403")
    assert [pod["spec"]["automountServiceAccountToken"] for pod in namespace.kubectl.list("pods")] == [False] * len(
        namespace.kubectl.list("pods")
    )


def test_a_trainer_waits_for_a_free_gpu_of_its_pool_and_gets_it(namespace: FleetNamespace) -> None:
    namespace.kubectl.apply(pod_with_all_gpus(namespace))
    namespace.kubectl("wait", "pod/occupant", "--for=condition=Ready", "--timeout=60s")
    accelerator = {"resource": GPUS, "count": 1, "memory": "1Gi"}
    namespace.kubectl.apply(
        namespace.site("north", capacity={"cpu": 1, "memory": "2Gi", "accelerator": accelerator}), namespace.run(**SHORT)
    )

    namespace.wait(
        "the run reports the missing GPU", lambda: f"Unschedulable: 0/2 nodes are available: 1 Insufficient {GPUS}" in progress(namespace)
    )
    namespace.kubectl("delete", "pod", "occupant", "--force", "--grace-period=0")
    pod = namespace.wait_for_trainer(JOB)
    assert pod["spec"]["containers"][0]["resources"]["limits"][GPUS] == "1"

    # The node's GPU is pretended: that the trainer does not go on with the CPU is seen only here.
    namespace.wait("the trainer reports that there is no GPU", lambda: GPU_IS_MISSING in json.dumps(namespace.get_run()["status"]))
