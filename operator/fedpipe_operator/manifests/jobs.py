"""The Job around a pod: how often, how long, and what its failures mean."""

import math
from typing import Any, Final

from fedpipe_operator.api import seconds
from fedpipe_operator.backend import Job
from fedpipe_operator.manifests.metadata import metadata
from fedpipe_operator.rounds import Run
from fedpipe_operator.settings import Settings
from fedpipe_trainer.contract import ExitCode

Plain = dict[str, Any]

_BACKSTOP_SECONDS: Final = 300
"""After the stage's own deadline, by which the operator ends a Job itself, Kubernetes would: should the operator be away."""


def job_around(run: Run, job: Job, pod: Plain, settings: Settings) -> Plain:
    """A Job of one attempt: the operator counts attempts, so a failed pod fails it, but for one that a node let go of."""
    container = pod["spec"]["containers"][0]["name"]
    time = math.ceil(seconds(run.spec.rounds.deadline)) + _BACKSTOP_SECONDS
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(run, job, queued=True),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            "activeDeadlineSeconds": time,
            # Within its stage, a failed Job is all that tells of its attempt.
            "ttlSecondsAfterFinished": max(settings.job_ttl_seconds, time),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [_disruption(), _final_exit(container)]},
            "template": pod,
        },
    }


def _disruption() -> Plain:
    """A drained node, a preempted pod: another one takes its place, and no attempt is used up."""
    return {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def _final_exit(container: str) -> Plain:
    """The task, the data or the model is at fault: another pod would end the same."""
    values = sorted(int(code) for code in ExitCode if code.is_final)
    return {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": values}}
