"""The history of a namespace's Jobs, read from the Jobs and their events: which were created, with how many pods, and when."""

from collections import defaultdict
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from cluster_user import Kubectl, Plain


def name_in_run(name: str) -> str:
    """The name that a Job has in its run (`names.job`), of its name in Kubernetes, which ends with a hash."""
    return name.rpartition("-")[0]


class JobSpan(NamedTuple):
    """When a Job took one of its site's places, in Unix time; Kubernetes records whole seconds."""

    start: float
    end: float
    job: str


def duplicate_jobs(kubectl: Kubectl) -> list[str]:
    """Names of the Jobs that were created more than once or had more than one pod."""
    uids, pods = defaultdict(set), defaultdict(set)
    for job in kubectl.list("jobs"):
        uids[job["metadata"]["name"]].add(job["metadata"]["uid"])
    for event in kubectl.list("events", fields="involvedObject.kind=Job"):
        about = event["involvedObject"]
        uids[about["name"]].add(about["uid"])
        if event["reason"] == "SuccessfulCreate":
            pods[about["name"]].add(event["message"])
    return sorted(name for found in (uids, pods) for name, distinct in found.items() if len(distinct) > 1)


def created_jobs(kubectl: Kubectl) -> set[str]:
    """Names of all Jobs that there are or were, from the Jobs and their events: each Job that was not refused has had a pod."""
    events = kubectl.list("events", fields="involvedObject.kind=Job,reason=SuccessfulCreate")
    return {job["metadata"]["name"] for job in kubectl.list("jobs")} | {event["involvedObject"]["name"] for event in events}


def job_spans_by_site(kubectl: Kubectl) -> dict[str, list[JobSpan]]:
    """From creation to end, the Jobs of each site, of all runs, in order of their creation."""
    found = defaultdict(list)
    for job in kubectl.list("jobs", "fedpipe.io/site"):
        found[job["metadata"]["labels"]["fedpipe.io/site"]].append(_job_span(job))
    return {site: sorted(spans) for site, spans in found.items()}


def all_jobs_finished(kubectl: Kubectl) -> bool:
    """Whether every Job is Complete or Failed; a Job may end a moment after the run that has read its result."""
    return all({one["type"] for one in job["status"].get("conditions", ())} & {"Complete", "Failed"} for job in kubectl.list("jobs"))


def finished_at(job: Plain) -> float:
    """When the Job became Complete or Failed, in Unix time."""
    return min(_timestamp(one["lastTransitionTime"]) for one in job["status"]["conditions"] if one["type"] in ("Complete", "Failed"))


def created_at(body: Plain) -> float:
    """When the object was created, in Unix time."""
    return _timestamp(body["metadata"]["creationTimestamp"])


def overlaps(spans: list[JobSpan]) -> list[tuple[str, str]]:
    """Pairs of consecutive Jobs that ran at the same time."""
    return [(one.job, other.job) for one, other in pairwise(spans) if other.start < one.end]


def _job_span(job: Plain) -> JobSpan:
    return JobSpan(created_at(job), finished_at(job), job["metadata"]["name"])


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
