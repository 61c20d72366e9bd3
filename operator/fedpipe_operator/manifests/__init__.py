"""A job as Kubernetes objects: plain dicts, made from values alone.

Every object carries the run's labels and is owned by the run, so that deleting the run deletes all of it.
"""

from fedpipe_operator.manifests.aggregation import aggregation_job
from fedpipe_operator.manifests.metadata import labels_of, task_secret
from fedpipe_operator.manifests.trainer import trainer_job

__all__ = ["aggregation_job", "labels_of", "task_secret", "trainer_job"]
