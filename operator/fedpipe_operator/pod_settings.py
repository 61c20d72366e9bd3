"""What the administrator gives to pods: certificates, a proxy, a hub's token, and where the run's own Jobs run. Read from JSON. Pure.

An `EdgeSite` says what its trainers get (`api.pod_template`). An export and an aggregation belong to no site, and every pod that
connects to a store or a hub does so by way of the cluster's own network.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, ValidationError

from fedpipe_operator.api.documents import format_path
from fedpipe_operator.api.messages import problem_of
from fedpipe_operator.api.meta import OBJECT_PATTERN, ApiModel
from fedpipe_operator.api.pod_template import CONFIG_KEY_PATTERN

Model = TypeVar("Model", bound=ApiModel)
Plain = dict[str, Any]

USER: Final = 65532
"""The user and group of both images; they also run as any other."""
JOB_POD_SECURITY: Final[Mapping[str, Any]] = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
OptionalName = Annotated[str, Field(pattern=f"^$|{OBJECT_PATTERN}", max_length=253)]
"""The name of an object; empty: there is none."""
ConfigKey = Annotated[str, Field(pattern=CONFIG_KEY_PATTERN, max_length=253)]


class CaBundle(ApiModel):
    """The certificates that pods trust instead of their images', in PEM format: a ConfigMap in the namespace of each."""

    config_map_name: OptionalName = ""
    key: ConfigKey = "ca.crt"


class Proxy(ApiModel):
    """The proxies for http:// and https://, and the hosts that are reached without one, separated by commas."""

    http: str = ""
    https: str = ""
    no_proxy: str = ""


class SecretKey(ApiModel):
    """One key of a Secret in the run's namespace."""

    name: OptionalName = ""
    key: ConfigKey = "token"


class ReportServer(ApiModel):
    """Whether the operator serves the reports of runs, and to whom."""

    enabled: bool = False
    port: Annotated[int, Field(ge=1024, le=65535)] = 8443
    audience: Annotated[str, Field(max_length=253)] = "fedpipe.io/report"
    """For which a caller's token must have been made; empty: for the API server."""
    tls_secret_name: OptionalName = ""
    """The Secret that the chart mounts in `REPORTS_TLS`; empty: plain HTTP."""


class Resources(ApiModel):
    """The resources of a container."""

    requests: dict[str, str | int | float] = {}
    limits: dict[str, str | int | float] = {}


class PodDefaults(ApiModel):
    """What a Job that belongs to no site requests, and where it runs; each field as in a pod or in its container."""

    resources: Resources = Resources()
    node_selector: dict[str, str] = {}
    tolerations: tuple[Plain, ...] = ()
    affinity: Plain = {}
    priority_class_name: OptionalName = ""

    @property
    def scheduling(self) -> Plain:
        """The fields of a pod's spec; those that nothing was given for are left out."""
        fields = {
            "nodeSelector": self.node_selector,
            "tolerations": list(self.tolerations),
            "affinity": self.affinity,
            "priorityClassName": self.priority_class_name,
        }
        return {name: value for name, value in fields.items() if value}


IMAGE_CERTIFICATES: Final = CaBundle()
NO_PROXY: Final = Proxy()
NO_TOKEN: Final = SecretKey()
NO_REPORTS: Final = ReportServer()
REPORTS_TLS: Final = "/etc/fedpipe/reports-tls"
EXPORT_JOB: Final = PodDefaults(resources=Resources(requests={"cpu": "500m", "memory": "1Gi"}))
"""An export loads the whole base, whose size no default can know: so it has no limit."""
AGGREGATION_JOB: Final = PodDefaults(resources=Resources(requests={"cpu": "500m", "memory": "1Gi"}, limits={"memory": "4Gi"}))
"""Aggregation streams: its memory depends on one weight, not on the size of the updates (benchmarks/README.md). Without a limit of
processors it uses what is free; a small node has no whole one left to reserve."""


def parse_as(model: type[Model]) -> Callable[[str], Model]:
    """A parser of JSON text for this model.

    The parser raises:
        ValueError: the text is no such JSON object; the message names the first field that is wrong.
    """

    def parse(text: str) -> Model:
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            path, message = problem_of(error.errors()[0], model.model_json_schema())
            raise ValueError(f"{format_path(path)}: {message}" if path else message) from error

    return parse
