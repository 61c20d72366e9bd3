"""Objects as the operator's cache holds them, for the tests of the handlers. All are in the namespace `wards`."""

from typing import Any

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.cluster import KubeJob
from fedpipe_operator.handlers.cache import WatchCache
from fedpipe_operator.rounds import Run
from fedpipe_operator.sites import Node

NODE = Node("one", {}, {"cpu": 4.0}, schedulable=True)


def a_body(name: str, *, labels: dict[str, str] | None = None, spec: Any = None, status: Any = None, **meta: Any) -> dict[str, Any]:
    whole = {"namespace": "wards", "name": name, "uid": f"uid-{name}", "resourceVersion": "1", "labels": labels or {}} | meta
    return {"metadata": whole, "spec": spec or {}, "status": status or {}}


def a_job(run: str, site: str, **changes: Any) -> KubeJob:
    return KubeJob("wards", run, f"uid-{run}", Job(f"{run}-train-{site}-a0", TaskKind.TRAIN, site), created_at=0.0, **changes)


def in_wards(site: EdgeSite, **labels: str) -> EdgeSite:
    return site.model_copy(update={"metadata": site.metadata.model_copy(update={"namespace": "wards", "labels": labels})})


def named(run: Run, name: str, **changes: Any) -> Run:
    """The run under another name, in the namespace `wards`."""
    meta = run.resource.metadata.model_copy(update={"name": name, "namespace": "wards", "uid": f"uid-{name}"})
    return Run(run.resource.model_copy(update={"metadata": meta} | changes), run.sites)


def a_cache(**known: Any) -> WatchCache:
    names = ("run_bodies", "run_summaries", "site_bodies", "sites", "jobs_of_runs", "jobs_at_sites")
    return WatchCache(**{name: known.get(name, {}) for name in names}, nodes=known.get("nodes"))


def selecting(**labels: str) -> dict[str, Any]:
    return {"sites": {"selector": {"matchLabels": labels}}}
