"""Pods and their security context: the restricted Pod Security profile, unless the administrator says otherwise. For sites: `additions`."""

from typing import Any, Final

from fedpipe_operator.manifests.metadata import TASK_FILE
from fedpipe_operator.settings import Settings

Plain = dict[str, Any]

TASK_FOLDER: Final = "/task"
SCRATCH: Final = "/scratch"
_GRACE_SECONDS: Final = 120
"""For writing and uploading a checkpoint."""
_TASK_MODE: Final = 0o440

_CONTAINER_SECURITY: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def task_pod(task: str, container: Plain, settings: Settings) -> Plain:
    """The spec of a pod that runs the task of this Secret in one container, with a scratch volume and no access to the Kubernetes API."""
    environment = [*container.get("env", []), *({"name": name, "value": SCRATCH} for name in ("HOME", "TMPDIR"))]
    mounts = [
        {"name": "task", "mountPath": TASK_FOLDER, "readOnly": True},
        {"name": "scratch", "mountPath": SCRATCH},
        *container.get("volumeMounts", []),
    ]
    spec: Plain = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": dict(settings.job_pod_security_context),
        "volumes": [
            {"name": "task", "secret": {"secretName": task, "defaultMode": _TASK_MODE}},
            {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch}},
        ],
        "containers": [
            container
            | {
                "env": environment,
                "volumeMounts": mounts,
                "imagePullPolicy": settings.image_pull_policy,
                "securityContext": _CONTAINER_SECURITY,
            },
        ],
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return spec


def task_argument() -> str:
    """Where a container finds its task."""
    return f"{TASK_FOLDER}/{TASK_FILE}"
