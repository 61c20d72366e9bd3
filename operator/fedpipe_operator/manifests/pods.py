"""Pods, and their security context: each fits the restricted Pod Security profile, whatever an administrator adds to it."""

from typing import Any, Final

from fedpipe_operator.manifests.metadata import TASK_FILE
from fedpipe_operator.settings import Settings

Plain = dict[str, Any]

USER: Final = 65532
TASK_FOLDER: Final = "/task"
SCRATCH: Final = "/scratch"
_GRACE_SECONDS: Final = 120
"""For writing and uploading a checkpoint."""
_TASK_MODE: Final = 0o440

_POD_SECURITY: Final = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
_FORBIDDEN_FIELDS: Final = ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "serviceAccountName", "serviceAccount")
"""Fields of a pod that an override may not set."""


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
        "volumes": [
            {"name": "task", "secret": {"secretName": task, "defaultMode": _TASK_MODE}},
            {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch}},
        ],
        "containers": [
            container | {"env": environment, "volumeMounts": mounts, "imagePullPolicy": settings.image_pull_policy},
        ],
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return with_security_context(spec)


def with_security_context(spec: Plain) -> Plain:
    """The spec with the security context of pod and containers, without forbidden fields and API tokens."""
    secured = {name: value for name, value in spec.items() if name not in _FORBIDDEN_FIELDS}
    for kind in ("containers", "initContainers"):
        if kind in secured:
            secured[kind] = [one | {"securityContext": _CONTAINER_SECURITY} for one in secured[kind]]
    secured["volumes"] = [_without_token(volume) for volume in secured.get("volumes", [])]
    return secured | {"automountServiceAccountToken": False, "securityContext": _POD_SECURITY}


def with_overrides(spec: Plain, override: Plain, credentials: str | None) -> Plain:
    """The spec with an administrator's additions merged into it: maps field by field, lists of named items by name.

    The pod gets nothing from the Secret `credentials`, which gives access to the store.
    """
    return with_security_context(_merge(spec, _without_secret(override, credentials) if credentials else override))


def _without_token(volume: Plain) -> Plain:
    """The volume without API tokens: automountServiceAccountToken does not concern projected volumes."""
    projected = volume.get("projected")
    if not isinstance(projected, dict):
        return volume
    sources = [one for one in projected.get("sources", []) if "serviceAccountToken" not in one]
    return volume | {"projected": projected | {"sources": sources}}


def _without_secret(value: Any, name: str) -> Any:  # noqa: ANN401 -- whatever YAML holds
    """The value without its references to this Secret: variables and sources of volumes; a volume of the Secret becomes an empty one."""
    if isinstance(value, list):
        return [_without_secret(one, name) for one in value if not _reads_secret(one, name)]
    if isinstance(value, dict) and _references(value, "secret", "secretName", name):
        return {key: one for key, one in value.items() if key != "secret"} | {"emptyDir": {}}
    return {key: _without_secret(one, name) for key, one in value.items()} if isinstance(value, dict) else value


def _reads_secret(one: Any, name: str) -> bool:  # noqa: ANN401 -- likewise
    """Whether an entry of env, envFrom or a projected volume's sources reads this Secret."""
    if not isinstance(one, dict):
        return False
    value = one.get("valueFrom")
    is_variable = isinstance(value, dict) and _references(value, "secretKeyRef", "name", name)
    return is_variable or any(_references(one, kind, "name", name) for kind in ("secretRef", "secret"))


def _references(value: Plain, kind: str, by: str, name: str) -> bool:
    reference = value.get(kind)
    return isinstance(reference, dict) and reference.get(by) == name


def task_argument() -> str:
    """Where a container finds its task."""
    return f"{TASK_FOLDER}/{TASK_FILE}"


def _merge(base: Plain, override: Plain) -> Plain:
    return base | {name: _merge_value(base.get(name), value) for name, value in override.items()}


def _merge_value(base: Any, override: Any) -> Any:  # noqa: ANN401 -- whatever YAML holds
    if isinstance(base, dict) and isinstance(override, dict):
        return _merge(base, override)
    if isinstance(base, list) and isinstance(override, list) and all(isinstance(one, dict) and "name" in one for one in [*base, *override]):
        known = {one["name"]: one for one in base}
        return list((known | {one["name"]: _merge(known.get(one["name"], {}), one) for one in override}).values())
    return override
