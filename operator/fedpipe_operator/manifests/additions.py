"""What a site adds to its trainer pods: its pool, and the fields of `podTemplate`. Nothing that the pod has can be replaced by it."""

from collections.abc import Collection
from typing import Any, Final

from fedpipe_operator.api import EdgeSite, Reason
from fedpipe_operator.api.meta import ApiModel
from fedpipe_operator.api.pod_template import ConfigMapFile, PodTemplate
from fedpipe_operator.errors import UserError
from fedpipe_operator.settings import Settings

Plain = dict[str, Any]

_CA_FOLDER: Final = "/etc/fedpipe/ca"
_CA_FILE: Final = "ca.crt"
_CA_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Where httpx, requests and boto3 look for the certificates that they trust."""
_NOTHING: Final = PodTemplate()


def priority_problem(site: EdgeSite, allowed: Collection[str]) -> str | None:
    """Why the site's pods may not have the priority class that it names; None if they may, or if it names none.

    Args:
        site: the site.
        allowed: the classes that the administrator's setting names.
    """
    template = site.spec.pod_template
    name = template.spec.priority_class_name if template else None
    if name is None or name in allowed:
        return None
    which = f"the operator's administrator allows {', '.join(allowed) or 'none'}"
    return f"spec.podTemplate.spec.priorityClassName is {name}, and {which}: remove it, or have it added to priorityClasses"


def pool_template(site: EdgeSite, labels: dict[str, str], pod: Plain, settings: Settings) -> Plain:
    """The pod template with these labels, on the nodes of the site's pool and with what the site adds.

    Raises:
        UserError: `PriorityClassNotAllowed`.
    """
    if (problem := priority_problem(site, settings.priority_classes)) is not None:
        raise UserError(Reason.PRIORITY_CLASS_NOT_ALLOWED, problem)
    added = site.spec.pod_template or _NOTHING
    metadata = {"labels": dict(added.labels) | labels, "annotations": dict(added.annotations)}
    return {"metadata": metadata, "spec": _with_certificates(_with_variables(pod | _scheduling(site, added), added), added.ca_config_map)}


def _scheduling(site: EdgeSite, added: PodTemplate) -> Plain:
    """The fields of a pod that decide where it runs and how urgent it is; those that nothing was given for are left out."""
    pool, spec = site.spec, added.spec
    fields = {
        "nodeSelector": pool.pool_labels,
        "tolerations": [_plain(one) for one in (*pool.tolerations, *spec.tolerations)],
        "runtimeClassName": pool.runtime_class_name,
        "affinity": _plain(spec.affinity) if spec.affinity else None,
        "topologySpreadConstraints": [_plain(one) for one in spec.topology_spread_constraints],
        "priorityClassName": spec.priority_class_name,
    }
    return {name: value for name, value in fields.items() if value}


def _plain(value: ApiModel) -> Plain:
    """The value as Kubernetes has it, with the fields that were given."""
    return value.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def _with_variables(pod: Plain, added: PodTemplate) -> Plain:
    """The trainer's own variables come last, so that they count."""
    (container,) = pod["containers"]
    given = [{"name": one.name, "value": one.value} for one in added.env]
    return pod | {"containers": [container | {"env": [*given, *container["env"]]}]}


def _with_certificates(pod: Plain, file: ConfigMapFile | None) -> Plain:
    """The pod that trusts the certificates of this file, if there is one."""
    if file is None:
        return pod
    (container,) = pod["containers"]
    volume = {"name": "ca", "configMap": {"name": file.name, "items": [{"key": file.key, "path": _CA_FILE}]}}
    mount = {"name": "ca", "mountPath": _CA_FOLDER, "readOnly": True}
    variables = [{"name": name, "value": f"{_CA_FOLDER}/{_CA_FILE}"} for name in _CA_VARIABLES]
    container = container | {
        "env": [*container["env"], *variables],
        "volumeMounts": [*container["volumeMounts"], mount],
    }
    return pod | {"containers": [container], "volumes": [*pod["volumes"], volume]}
