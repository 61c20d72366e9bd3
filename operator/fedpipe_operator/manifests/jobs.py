"""The Jobs of a run: a trainer's task on a site's pool, or an aggregation in the operator's image; one attempt each."""

import math
from typing import Any, Final

from fedpipe_operator.api import EdgeSite, parse_duration, parse_quantity
from fedpipe_operator.api.meta import QUEUE_PREFIX
from fedpipe_operator.backend import Job, JobResources
from fedpipe_operator.manifests.additions import pool_template
from fedpipe_operator.manifests.egress import (
    certificates_of,
    endpoint_variables,
    proxy_variables,
    token_variables,
    with_certificates,
    with_defaults,
)
from fedpipe_operator.manifests.metadata import metadata, object_name
from fedpipe_operator.manifests.pods import SCRATCH, task_argument, task_pod
from fedpipe_operator.pod_settings import PodDefaults
from fedpipe_operator.rounds import Run
from fedpipe_operator.settings import Settings
from fedpipe_trainer.contract import ExitCode

Plain = dict[str, Any]

TRAINER: Final = "trainer"
WORKER: Final = "worker"
"""Our containers in the pods of Jobs: a cluster may inject others."""
DATA_FOLDER: Final = "/data"
MODEL_FOLDER: Final = "/model"
CACHE_FOLDER: Final = "/cache"
CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
SESSION_TOKEN: Final = "AWS_SESSION_TOKEN"  # noqa: S105 -- a variable's name
"""Short-lived pairs have one."""
"""Keys of the Secret that a store's `credentialsSecretRef` names, and the variables in which boto3 looks for them."""
_CPU_REQUEST: Final = 0.5
"""Requested cores as a share of the claim: a node can give less than it has, and a slower trainer has not failed."""
_MEMORY_REQUEST: Final = 1.15
"""Requested memory as a multiple of the forecast: forecasts are within 15 %."""
_SCRATCH_FOR_ACTIVATIONS: Final = 0.25
"""Share of the scratch volume; the rest is for a downloaded model, the adapters and a checkpoint."""
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108 -- where glibc has it
_SHARED_MEBIBYTES: Final = 256
"""For each GPU of a pod. NCCL's buffers take some 10 MiB for a pair of GPUs that reach each other by no shorter way."""
_BACKSTOP_SECONDS: Final = 300
"""Beyond the stage's deadline, at which the operator ends a Job, Kubernetes ends it: in case the operator is down."""
_LONGEST_SECONDS: Final = 1e9
"""Some 30 years: Kubernetes counts them in 32 bits, and refuses a Job with more."""


def trainer_job(run: Run, job: Job, site: EdgeSite | None, resources: JobResources, settings: Settings) -> Plain:
    """The Job for a trainer's task; `site` is None for an export, which needs no data and may run on any node.

    Raises:
        UserError: `PriorityClassNotAllowed`.
    """
    claims = _claims(run, site)
    cache = [site.spec.cache.persistent_volume_claim.claim_name] if site and site.spec.cache else []
    container = {
        "name": TRAINER,
        "image": settings.trainer_image,
        "args": [task_argument()],
        "env": _environment(site, resources, settings),
        "resources": _resources(site, resources) if site else settings.export_job.resources.model_dump(exclude_defaults=True),
        "volumeMounts": [
            *({"name": name, "mountPath": folder, "readOnly": True} for name, (folder, _) in claims.items()),
            # The volume behind a claim may serve several namespaces, which must not see each other's models and activations.
            *({"name": "cache", "mountPath": CACHE_FOLDER, "subPath": run.resource.metadata.namespace} for _ in cache),
        ],
    }
    spec = task_pod(object_name(run, job), container, settings)
    spec["volumes"] += [
        {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}} for name, (_, claim) in claims.items()
    ]
    spec["volumes"] += [{"name": "cache", "persistentVolumeClaim": {"claimName": claim}} for claim in cache]
    if site is not None:
        _add_shared_memory(spec, site)
    labels = metadata(run, job)["labels"]
    template = pool_template(site, labels, spec, settings) if site else _own_template(labels, spec, settings.export_job, settings)
    source = run.spec.model.source
    of_hub = [
        *endpoint_variables(source, settings.hugging_face_endpoint),
        *token_variables(source, settings.hugging_face_token_secret_ref, site),
    ]
    variables = [*proxy_variables(settings.proxy), *of_hub]
    template |= {"spec": with_defaults(template["spec"], variables)}
    return _job(run, job, template, settings, may_wait_for_node=site is not None and site.spec.autoscaled)


def _add_shared_memory(pod: Plain, site: EdgeSite) -> None:
    """Give the GPUs of a pod room to exchange gradients by way of the node's memory, which counts towards the pod's limit.

    A container has 64 MiB of it by default, and NCCL fails with less than it needs.
    """
    accelerator = site.spec.capacity.accelerator
    if accelerator is None or accelerator.devices == 1:
        return
    volume = {"medium": "Memory", "sizeLimit": f"{accelerator.devices * _SHARED_MEBIBYTES}Mi"}
    pod["volumes"].append({"name": "shared-memory", "emptyDir": volume})
    pod["containers"][0]["volumeMounts"].append({"name": "shared-memory", "mountPath": _SHARED_MEMORY})


def aggregation_job(run: Run, job: Job, settings: Settings) -> Plain:
    """The Job that aggregates a round. It runs the operator's own code, so it gets the store's credentials.

    They are in the run's Secret, or, where it names none because the operator's identity opens the store, in that of the task.
    """
    container = {
        "name": WORKER,
        "image": settings.operator_image,
        "command": ["python", "-m", "fedpipe_operator.worker"],
        "args": [task_argument()],
        # Its last log lines say what is wrong with the store. A trainer's stay in its log: they may quote data.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": _credentials(run, job),
        "resources": settings.aggregation_job.resources.model_dump(exclude_defaults=True),
    }
    labels, spec = metadata(run, job)["labels"], task_pod(object_name(run, job), container, settings)
    template = _own_template(labels, with_defaults(spec, proxy_variables(settings.proxy)), settings.aggregation_job, settings)
    return _job(run, job, template, settings)


def _own_template(labels: dict[str, str], pod: Plain, given: PodDefaults, settings: Settings) -> Plain:
    """The pod template of a Job that belongs to no site: the administrator says where it runs."""
    return {"metadata": {"labels": labels}, "spec": with_certificates(pod | given.scheduling, certificates_of(settings.ca_bundle))}


def _job(run: Run, job: Job, template: Plain, settings: Settings, *, may_wait_for_node: bool = False) -> Plain:
    """The Job of one attempt. The operator counts attempts, so a failed pod fails the Job, unless its node evicted the pod.

    Kubernetes counts its deadline from when a queue let it run, and so the time that its pod waits for a node as well.
    """
    container = template["spec"]["containers"][0]["name"]
    deadline, in_queue = (parse_duration(text) for text in (run.spec.rounds.deadline, run.spec.rounds.queue_deadline))
    active = _whole(deadline + (in_queue if may_wait_for_node else 0.0))
    stage = _whole(deadline + (in_queue if _may_wait(run) else 0.0))
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(run, job, queued=True),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            "activeDeadlineSeconds": active,
            # Until its stage is over, a failed Job is the only record of its attempt.
            "ttlSecondsAfterFinished": max(settings.job_ttl_seconds, stage),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [_ignore_disruption(), _fail_on_final_exit(container)]},
            "template": template,
        },
    }


def _whole(seconds: float) -> int:
    """So many seconds, and the backstop's, in a number that Kubernetes takes."""
    return math.ceil(min(_LONGEST_SECONDS, seconds)) + _BACKSTOP_SECONDS


def _may_wait(run: Run) -> bool:
    """Whether a stage of the run may last longer than its deadline, as far as the run and its sites say."""
    is_queued = any(name.startswith(QUEUE_PREFIX) for name in run.resource.metadata.labels)
    return is_queued or any(site.spec.autoscaled for site in run.sites)


def _ignore_disruption() -> Plain:
    """A drained node or a preemption: another pod replaces this one, and the attempt goes on."""
    return {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def _fail_on_final_exit(container: str) -> Plain:
    """The task, the data or the model is at fault: another pod would fail in the same way."""
    values = sorted(int(code) for code in ExitCode if code.is_final)
    return {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": values}}


def _credentials(run: Run, job: Job) -> list[Plain]:
    reference = run.store.credentials_secret_ref
    secret = reference.name if reference else object_name(run, job)
    needed = [{"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}} for name in CREDENTIALS]
    token = {"secretKeyRef": {"name": secret, "key": SESSION_TOKEN, "optional": True}}
    return [*needed, {"name": SESSION_TOKEN, "valueFrom": token}]


def _claims(run: Run, site: EdgeSite | None) -> dict[str, tuple[str, str]]:
    """Volumes by name: where each is mounted, and its claim."""
    claims = {"data": (DATA_FOLDER, site.spec.data.volume.persistent_volume_claim.claim_name)} if site else {}
    if run.spec.model.claim is not None:
        claims["model"] = (MODEL_FOLDER, run.spec.model.claim)
    return claims


def _environment(site: EdgeSite | None, resources: JobResources, settings: Settings) -> list[Plain]:
    """Caches go to the site's cache, or else to the scratch volume. One thread per claimed core: libraries would count the node's cores.

    A trainer that knows its memory limit stops before it and goes on with fewer samples at once; else the kernel kills it.
    """
    variables = {"FEDPIPE_CACHE": resources.cache or f"{SCRATCH}/cache", "XDG_CACHE_HOME": f"{SCRATCH}/cache"}
    variables["FEDPIPE_LOG_FORMAT"] = settings.log_format
    if resources.cache is None:
        # A pod that exceeds the size of its scratch volume is evicted, and the trainer sees only how much the node's disk has free.
        variables["FEDPIPE_ACTIVATION_CACHE_BYTES"] = str(int(parse_quantity(settings.scratch) * _SCRATCH_FOR_ACTIVATIONS))
    if resources.memory_bytes is not None:
        variables["FEDPIPE_MEMORY_LIMIT_BYTES"] = str(resources.memory_bytes)
    if resources.cpus is not None:
        variables["OMP_NUM_THREADS"] = str(resources.cpus)
    if site is not None and site.spec.capacity.accelerator is not None:
        variables["FEDPIPE_ACCELERATOR"] = site.spec.capacity.accelerator.resource
    return [{"name": name, "value": value} for name, value in variables.items()]


def _resources(site: EdgeSite, resources: JobResources) -> Plain:
    """Requests by the plan's forecast, limits by the site's claim."""
    maximum: Plain = {}
    requests: Plain = {}
    if resources.memory_bytes is not None:
        maximum["memory"] = str(resources.memory_bytes)
    if site.spec.capacity.cpu is not None:
        maximum["cpu"] = site.spec.capacity.cpu
        requests["cpu"] = f"{max(1, round(parse_quantity(site.spec.capacity.cpu) * 1000 * _CPU_REQUEST))}m"
    accelerator = site.spec.capacity.accelerator
    if accelerator is not None:
        maximum[accelerator.resource] = str(accelerator.count)
    memory = _requested_memory(resources, on_gpu=accelerator is not None)
    if memory is not None:
        requests["memory"] = str(memory)
    return {"limits": maximum, "requests": requests | {name: value for name, value in maximum.items() if name not in requests}}


def _requested_memory(resources: JobResources, *, on_gpu: bool) -> int | None:
    """Memory to request. A forecast for a GPU is about the device's memory and says nothing about the node's."""
    if resources.expected_bytes is None or on_gpu:
        return None
    requested = int(resources.expected_bytes * _MEMORY_REQUEST)
    return requested if resources.memory_bytes is None else min(requested, resources.memory_bytes)
