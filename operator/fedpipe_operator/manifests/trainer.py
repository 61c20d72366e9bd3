"""A trainer's Job: one task on a site's pool, with the site's data, the base model, and nothing else."""

from typing import Any, Final

from fedpipe_operator.api import EdgeSite, amount
from fedpipe_operator.api.edgesite import PodOverrides
from fedpipe_operator.backend import Job, Limits
from fedpipe_operator.manifests.jobs import job_around
from fedpipe_operator.manifests.metadata import metadata
from fedpipe_operator.manifests.pods import SCRATCH, overridden, task_argument, task_pod
from fedpipe_operator.rounds import Run
from fedpipe_operator.settings import Settings

Plain = dict[str, Any]

DATA_FOLDER: Final = "/data"
MODEL_FOLDER: Final = "/model"
CLAIM_SCHEME: Final = "pvc://"
_CPU_FLOOR: Final = 0.5
"""Cores that are set aside, as a share of the claim: a node has less to give than it has cores, and a slower trainer is no failed one."""
_HEADROOM: Final = 1.15
"""Memory that is asked for, as a multiple of the forecast: forecasts are within 15 %."""


def trainer_job(run: Run, job: Job, site: EdgeSite | None, limits: Limits, settings: Settings) -> Plain:
    """The Job for a trainer's task; `site` is None for the export, which needs no data and may run anywhere."""
    claims = _claims(run, site)
    container = {
        "name": "trainer",
        "image": settings.trainer_image,
        "args": [task_argument()],
        "env": _environment(limits),
        "resources": _resources(site, limits),
        "volumeMounts": [{"name": name, "mountPath": folder, "readOnly": True} for name, (folder, _) in claims.items()],
    }
    spec = task_pod(job, container, settings)
    spec["volumes"] += [
        {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}} for name, (_, claim) in claims.items()
    ]
    return job_around(run, job, _on_pool(run, job, spec, site), settings)


def _claims(run: Run, site: EdgeSite | None) -> dict[str, tuple[str, str]]:
    """Volumes by name: where each is mounted, and its claim."""
    claims = {"data": (DATA_FOLDER, site.spec.data.volume.persistent_volume_claim.claim_name)} if site else {}
    source = run.spec.model.source
    if source.startswith(CLAIM_SCHEME):
        claims["model"] = (MODEL_FOLDER, source.removeprefix(CLAIM_SCHEME).partition("/")[0])
    return claims


def _environment(limits: Limits) -> list[Plain]:
    """Caches go to the scratch volume. As many threads as cores: libraries would count those of the node."""
    told = {"FEDPIPE_CACHE": f"{SCRATCH}/cache", "XDG_CACHE_HOME": f"{SCRATCH}/cache"}
    if limits.cpus is not None:
        told["OMP_NUM_THREADS"] = str(limits.cpus)
    return [{"name": name, "value": value} for name, value in told.items()]


def _resources(site: EdgeSite | None, limits: Limits) -> Plain:
    """What the scheduler sets aside, by the plan, and what the kernel allows, by the site's claim."""
    ceiling: Plain = {}
    floor: Plain = {}
    if limits.memory_bytes is not None:
        ceiling["memory"] = str(limits.memory_bytes)
    if site is not None and site.spec.capacity.cpu is not None:
        ceiling["cpu"] = site.spec.capacity.cpu
        floor["cpu"] = f"{max(1, round(amount(site.spec.capacity.cpu) * 1000 * _CPU_FLOOR))}m"
    accelerator = site.spec.capacity.accelerator if site else None
    if accelerator is not None:
        ceiling[accelerator.resource] = str(accelerator.count)
    expected = _expected(limits, on_gpu=accelerator is not None)
    if expected is not None:
        floor["memory"] = str(expected)
    return {"limits": ceiling, "requests": floor | {name: value for name, value in ceiling.items() if name not in floor}}


def _expected(limits: Limits, *, on_gpu: bool) -> int | None:
    """Memory to ask for. A forecast for a GPU is of the device's memory and says nothing of the node's."""
    if limits.expected_bytes is None or on_gpu:
        return None
    asked = int(limits.expected_bytes * _HEADROOM)
    return asked if limits.memory_bytes is None else min(asked, limits.memory_bytes)


def _on_pool(run: Run, job: Job, spec: Plain, site: EdgeSite | None) -> Plain:
    """The pod's template, on the nodes of the site's pool and with what its administrator adds."""
    labels = metadata(run, job)["labels"]
    if site is None:
        return {"metadata": {"labels": labels}, "spec": spec}
    pool = site.spec
    spec |= {"nodeSelector": pool.node_selector} if pool.node_selector else {}
    if pool.tolerations:
        spec["tolerations"] = [one.model_dump(by_alias=True, exclude_none=True) for one in pool.tolerations]
    if pool.runtime_class_name:
        spec["runtimeClassName"] = pool.runtime_class_name
    added = pool.pod_template or PodOverrides()
    credentials = run.spec.store.credentials_secret_ref
    told = {"labels": dict(added.labels) | labels, "annotations": dict(added.annotations)}
    return {"metadata": told, "spec": overridden(spec, added.spec, credentials.name if credentials else None)}
