"""What a site adds to its trainer pods: its pool, and the fields of `podTemplate`. Nothing that the pod has can be replaced by it."""

from collections.abc import Collection
from typing import Any, Final

from fedpipe_operator.api import EdgeSite, Reason
from fedpipe_operator.api.meta import ApiModel
from fedpipe_operator.api.pod_template import PodTemplate
from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests.egress import certificates_of, with_certificates
from fedpipe_operator.settings import Settings

Plain = dict[str, Any]

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

    A site's certificates replace the administrator's, as they replace the image's.

    Raises:
        UserError: `PriorityClassNotAllowed`.
    """
    if (problem := priority_problem(site, settings.priority_classes)) is not None:
        raise UserError(Reason.PRIORITY_CLASS_NOT_ALLOWED, problem)
    added = site.spec.pod_template or _NOTHING
    metadata = {"labels": dict(added.labels) | labels, "annotations": dict(added.annotations)}
    certificates = added.ca_config_map or certificates_of(settings.ca_bundle)
    return {"metadata": metadata, "spec": with_certificates(_with_variables(pod | _scheduling(site, added), added), certificates)}


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
