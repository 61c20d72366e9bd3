"""What was done in a namespace, by what Kubernetes says of it afterwards: which Jobs were made, with how many pods, and when."""

from collections import defaultdict
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from cluster_user import Kubectl, Plain


class Span(NamedTuple):
    """When a Job held a place at its site, in whole seconds."""

    began: float
    ended: float
    job: str


def made_twice(kubectl: Kubectl) -> list[str]:
    """Jobs of one name that were made more than once, and Jobs that had more than one pod."""
    uids, pods = defaultdict(set), defaultdict(set)
    for job in kubectl.list("jobs"):
        uids[job["metadata"]["name"]].add(job["metadata"]["uid"])
    for event in kubectl.list("events", fields="involvedObject.kind=Job"):
        about = event["involvedObject"]
        uids[about["name"]].add(about["uid"])
        if event["reason"] == "SuccessfulCreate":
            pods[about["name"]].add(event["message"])
    return sorted(name for found in (uids, pods) for name, once in found.items() if len(once) > 1)


def spans_by_site(kubectl: Kubectl) -> dict[str, list[Span]]:
    """When the Jobs of each site were there and had not ended, those of all runs, in their order."""
    found = defaultdict(list)
    for job in kubectl.list("jobs", "fedpipe.io/site"):
        found[job["metadata"]["labels"]["fedpipe.io/site"]].append(_span(job))
    return {site: sorted(spans) for site, spans in found.items()}


def have_ended(kubectl: Kubectl) -> bool:
    """Whether every Job has; one that has reported may take a moment longer than its run."""
    return all({one["type"] for one in job["status"].get("conditions", ())} & {"Complete", "Failed"} for job in kubectl.list("jobs"))


def ended_at(job: Plain) -> float:
    """When the Job ended, well or not."""
    return min(_unix(one["lastTransitionTime"]) for one in job["status"]["conditions"] if one["type"] in ("Complete", "Failed"))


def created_at(body: Plain) -> float:
    """When the object was made."""
    return _unix(body["metadata"]["creationTimestamp"])


def overlaps(spans: list[Span]) -> list[tuple[str, str]]:
    """Jobs that were there at the same time."""
    return [(one.job, other.job) for one, other in pairwise(spans) if other.began < one.ended]


def _span(job: Plain) -> Span:
    return Span(created_at(job), ended_at(job), job["metadata"]["name"])


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
