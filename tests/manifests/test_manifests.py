"""A job as Kubernetes objects: whole objects against golden files, and what must hold for all of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from stand_in_cluster import SETTINGS
from stand_in_runs import a_run, a_site

from fedpipe_operator.api import EdgeSite, parse_quantity
from fedpipe_operator.backend import Job, JobResources, TaskKind
from fedpipe_operator.manifests import aggregation_job, task_secret, trainer_job
from fedpipe_operator.reconcile.placement import in_pods
from fedpipe_operator.rounds import Run, job_of
from fedpipe_operator.settings import Settings
from fedpipe_operator.store import Credentials
from fedpipe_trainer.contract import ExitCode

GOLDEN = Path(__file__).with_name("golden")
GIB = 2**30

GPU_SITE = a_site(
    "ward",
    nodeSelector={"fedpipe.io/pool": "a10"},
    tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    runtimeClassName="nvidia",
    capacity={"cpu": 8, "memory": "64Gi", "accelerator": {"count": 2, "memory": "24Gi"}},
)
CPU_SITE = a_site("cabin", capacity={"cpu": "1500m", "memory": "2Gi"})


def pod_of(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["spec"]["template"]["spec"]
    return found


def the_job(run: Run, kind: str = "train", site: str = "ward") -> Job:
    return job_of(run, kind, site=site, round_=3, attempt=1)


def made_for(site: EdgeSite, resources: JobResources | None = None, **spec: Any) -> dict[str, Any]:
    run = a_run([site], **spec)
    return trainer_job(run, the_job(run, site=site.name), site, resources or JobResources(), SETTINGS)


@pytest.mark.parametrize("name", ["train-on-gpus", "aggregate", "export", "task-secret"])
def test_an_object_is_exactly_what_its_golden_file_shows(name: str) -> None:
    run = a_run([GPU_SITE], store={"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}})
    settings = Settings("trainer:1", "operator:1", image_pull_secrets=("registry",))
    body = {
        "train-on-gpus": lambda: trainer_job(run, the_job(run), GPU_SITE, JobResources(64 * GIB, 8, 20 * GIB), settings),
        "aggregate": lambda: aggregation_job(run, job_of(run, TaskKind.AGGREGATE, round_=3), settings),
        "export": lambda: trainer_job(run, job_of(run, TaskKind.EXPORT), None, JobResources(), settings),
        "task-secret": lambda: task_secret(run, the_job(run), '{"kind": "train"}', {}),
    }[name]()

    assert body == json.loads((GOLDEN / f"{name}.json").read_text())


def test_memory_is_asked_for_by_the_plan_and_allowed_by_the_claim() -> None:
    resources = pod_of(made_for(CPU_SITE, JobResources(2 * GIB, 1, GIB)))["containers"][0]["resources"]

    assert resources == {
        "limits": {"cpu": "1500m", "memory": str(2 * GIB)},
        "requests": {"cpu": "750m", "memory": str(int(GIB * 1.15))},
    }


def test_a_trainer_is_told_the_memory_limit_of_its_container() -> None:
    container = pod_of(made_for(CPU_SITE, JobResources(2 * GIB, 1, GIB)))["containers"][0]
    unlimited = pod_of(made_for(a_site("cabin", capacity={}), JobResources()))["containers"][0]

    assert {"name": "FEDPIPE_MEMORY_LIMIT_BYTES", "value": container["resources"]["limits"]["memory"]} in container["env"]
    assert "FEDPIPE_MEMORY_LIMIT_BYTES" not in {one["name"] for one in unlimited["env"]}


def test_no_more_memory_is_asked_for_than_allowed() -> None:
    resources = pod_of(made_for(CPU_SITE, JobResources(2 * GIB, 1, 3 * GIB)))["containers"][0]["resources"]

    assert resources["requests"]["memory"] == resources["limits"]["memory"]


def test_a_forecast_of_a_gpus_memory_is_not_asked_of_the_node() -> None:
    resources = pod_of(made_for(GPU_SITE, JobResources(64 * GIB, 8, 20 * GIB)))["containers"][0]["resources"]

    assert resources["requests"]["memory"] == str(64 * GIB)
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "2"


@pytest.mark.parametrize(
    ("accelerator", "size"),
    [
        ({"count": 4, "memory": "24Gi"}, "1024Mi"),
        ({"count": 1, "memory": "24Gi"}, None),
        ({"resource": "nvidia.com/mig-1g.10gb", "count": 2, "memory": "9Gi"}, None),
    ],
    ids=["whole GPUs", "one GPU", "slices"],
)
def test_gpus_that_exchange_gradients_have_shared_memory(accelerator: dict[str, Any], size: str | None) -> None:
    pod = pod_of(made_for(a_site("ward", capacity={"memory": "64Gi", "accelerator": accelerator})))
    shared = {one["name"]: one["emptyDir"] for one in pod["volumes"] if "medium" in one.get("emptyDir", {})}
    mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}

    assert shared == ({"shared-memory": {"medium": "Memory", "sizeLimit": size}} if size else {})
    assert mounts.get("/dev/shm") == (  # noqa: S108 -- where glibc has it
        "shared-memory" if size else None
    )


def test_a_site_that_claims_nothing_is_limited_by_nothing() -> None:
    assert pod_of(made_for(a_site("free", capacity={})))["containers"][0]["resources"] == {"limits": {}, "requests": {}}


def test_a_failure_policy_knows_disruptions_and_the_final_exit_codes() -> None:
    rules = made_for(CPU_SITE)["spec"]["podFailurePolicy"]["rules"]

    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    assert rules[1]["onExitCodes"]["values"] == [int(code) for code in ExitCode if code.is_final]
    assert ExitCode.TRANSFER_FAILED not in rules[1]["onExitCodes"]["values"]


def test_seconds_are_those_that_kubernetes_can_count_whatever_the_deadline() -> None:
    rounds = {"count": 1, "deadline": f"{'9' * 30}h"}
    run = a_run([CPU_SITE], rounds=rounds)
    spec = trainer_job(run, the_job(run, site="cabin"), CPU_SITE, JobResources(), SETTINGS)["spec"]

    assert max(spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) < 2**31


def test_the_labels_of_a_queue_go_from_the_run_to_its_jobs_alone() -> None:
    run = a_run([CPU_SITE])
    labels = {"kueue.x-k8s.io/queue-name": "research", "team": "a"}
    resource = run.resource.model_copy(update={"metadata": run.resource.metadata.model_copy(update={"labels": labels})})
    queued = Run(resource, run.sites)
    body = trainer_job(queued, the_job(queued, site="cabin"), CPU_SITE, JobResources(), SETTINGS)

    assert body["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert "team" not in body["metadata"]["labels"]
    assert "kueue.x-k8s.io/queue-name" not in body["spec"]["template"]["metadata"]["labels"]


def test_a_model_of_a_claim_is_mounted_and_one_of_a_bucket_is_not() -> None:
    of_claim = {one["name"]: one for one in pod_of(made_for(CPU_SITE, model={"source": "pvc://models/base/v2"}))["volumes"]}
    of_bucket = {one["name"]: one for one in pod_of(made_for(CPU_SITE, model={"source": "s3://models/base"}))["volumes"]}

    assert of_claim["model"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert "model" not in of_bucket
    assert all(one["persistentVolumeClaim"]["readOnly"] for one in of_claim.values() if "persistentVolumeClaim" in one)


def test_a_sites_cache_is_mounted_for_writing_below_a_folder_of_its_namespace() -> None:
    site = a_site("ward", cache={"persistentVolumeClaim": {"claimName": "ward-cache"}})
    pod = pod_of(made_for(site, in_pods(Credentials("a", "b"), None).resources(a_run([site]), "ward")))
    (container,) = pod["containers"]

    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "ward-cache"}} in pod["volumes"]
    assert {"name": "cache", "mountPath": "/cache", "subPath": a_run([site]).resource.metadata.namespace} in container["volumeMounts"]
    assert {"name": "FEDPIPE_CACHE", "value": "/cache"} in container["env"]


def test_without_a_cache_activations_take_at_most_a_quarter_of_the_scratch_volume() -> None:
    pod = pod_of(made_for(CPU_SITE))
    (scratch,) = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume]
    environment = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}

    assert environment["FEDPIPE_CACHE"] == "/scratch/cache"
    assert int(environment["FEDPIPE_ACTIVATION_CACHE_BYTES"]) == parse_quantity(scratch) / 4


def test_names_and_labels_are_short_enough_whatever_the_run_and_the_site_are_called() -> None:
    site = a_site("s" * 63)
    run = a_run([site])
    metadata = run.resource.metadata.model_copy(update={"name": "r" * 63})
    long = Run(run.resource.model_copy(update={"metadata": metadata}), run.sites)
    body = trainer_job(long, the_job(long, site=site.name), site, JobResources(), SETTINGS)

    assert len(body["metadata"]["name"]) <= 63
    assert all(len(value) <= 63 for value in body["metadata"]["labels"].values())
