"""A job as Kubernetes objects: plain dicts, made from values only.

Every object carries the run's labels and is owned by the run, so that deleting the run deletes all of it.
"""

from fedpipe_operator.manifests.jobs import aggregation_job, trainer_job
from fedpipe_operator.manifests.metadata import labels_of, task_secret

__all__ = ["aggregation_job", "labels_of", "task_secret", "trainer_job"]
