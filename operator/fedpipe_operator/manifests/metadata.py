"""The metadata of a run's objects: name, labels, owner; and the Secret that holds a task."""

from collections.abc import Mapping
from typing import Any

from fedpipe_operator import names
from fedpipe_operator.api import API_VERSION
from fedpipe_operator.api.meta import LABEL_ATTEMPT, LABEL_ROUND, LABEL_RUN, LABEL_RUN_UID, LABEL_SITE, LABEL_TASK, QUEUE_PREFIX
from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.rounds import Run

Plain = dict[str, Any]

TASK_FILE = "task.json"


def labels_of(run: Run) -> dict[str, str]:
    """The labels of all objects of a run."""
    meta = run.resource.metadata
    return {LABEL_RUN: meta.name, LABEL_RUN_UID: meta.uid}


def round_labels(run: Run, round_: int) -> dict[str, str]:
    """The labels of a run's objects for one round."""
    return labels_of(run) | {LABEL_ROUND: str(round_)}


def metadata(run: Run, job: Job, *, queued: bool = False) -> Plain:
    """Metadata of an object that belongs to a job; `queued` copies the labels by which a queue such as Kueue admits the Job."""
    labels = labels_of(run) | {
        "app.kubernetes.io/name": "fedpipe",
        "app.kubernetes.io/component": "aggregation" if job.kind is TaskKind.AGGREGATE else "trainer",
        "app.kubernetes.io/managed-by": "fedpipe-operator",
        LABEL_TASK: job.kind,
        LABEL_ROUND: str(job.round),
        LABEL_ATTEMPT: str(job.attempt),
    }
    if job.site:
        labels[LABEL_SITE] = job.site
    if queued:
        labels |= {name: value for name, value in run.resource.metadata.labels.items() if name.startswith(QUEUE_PREFIX)}
    meta = run.resource.metadata
    return {"name": object_name(run, job), "namespace": meta.namespace, "labels": labels, "ownerReferences": [_owner(run)]}


def object_name(run: Run, job: Job) -> str:
    """The name of the job's Kubernetes Job, and of the Secret with its task."""
    return names.job_object(run.resource.metadata.uid, job.name, job.kind, job.site, job.round, job.attempt)


def task_secret(run: Run, job: Job, task_json: str, session: Mapping[str, str]) -> Plain:
    """The Secret with the job's task, including its presigned URLs.

    `session` has the key pair of the run's own session, by its variables; an aggregation gets it if the run names no Secret with one.
    """
    needs_session = job.kind is TaskKind.AGGREGATE and run.store.credentials_secret_ref is None
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(run, job),
        "type": "fedpipe.io/task",
        "immutable": True,
        "stringData": {TASK_FILE: task_json} | (dict(session) if needs_session else {}),
    }


def _owner(run: Run) -> Plain:
    meta = run.resource.metadata
    return {
        "apiVersion": API_VERSION,
        "kind": "FederatedFineTune",
        "name": meta.name,
        "uid": meta.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
