"""The Job that aggregates a round whose updates are too many for a process of the operator: the same worker, in the operator's image."""

from typing import Any, Final

from fedpipe_operator.backend import Job
from fedpipe_operator.manifests.jobs import job_around
from fedpipe_operator.manifests.metadata import metadata
from fedpipe_operator.manifests.pods import task_argument, task_pod
from fedpipe_operator.rounds import Run
from fedpipe_operator.settings import Settings

Plain = dict[str, Any]

_MEMORY: Final = "1Gi"
"""Aggregation streams: its memory depends on one weight, not on the updates' bytes (benchmarks/README.md)."""
_CPU: Final = "500m"
"""What is set aside; without a limit it takes whatever is free. A small node has no whole core left."""
CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def aggregation_job(run: Run, job: Job, settings: Settings) -> Plain:
    """The Job. It is the operator's own work, so it gets the store's credentials, from the run's Secret."""
    container = {
        "name": "worker",
        "image": settings.operator_image,
        "command": ["python", "-m", "fedpipe_operator.aggregation.worker"],
        "args": [task_argument()],
        # Its last words say what is wrong with the store. A trainer's stay in its log: they may quote data.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "env": _credentials(run),
        "resources": {"requests": {"cpu": _CPU, "memory": _MEMORY}, "limits": {"memory": "4Gi"}},
    }
    labels = metadata(run, job)["labels"]
    return job_around(run, job, {"metadata": {"labels": labels}, "spec": task_pod(job, container, settings)}, settings)


def _credentials(run: Run) -> list[Plain]:
    reference = run.spec.store.credentials_secret_ref
    if reference is None:
        return []
    return [{"name": name, "valueFrom": {"secretKeyRef": {"name": reference.name, "key": name}}} for name in CREDENTIALS]
