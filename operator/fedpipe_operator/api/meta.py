"""What both kinds share: the API group, object metadata, conditions, label keys. Each word of the API is spelled here once."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP: Final = "fedpipe.io"
API_VERSION: Final = "fedpipe.io/v1alpha1"

VERSION: Final = "v1alpha1"

LABEL_RUN: Final = f"{GROUP}/run"
"""On every object a run makes: the run's name."""
LABEL_RUN_UID: Final = f"{GROUP}/run-uid"
"""Likewise its uid: another run of the same name is another run."""
LABEL_TASK: Final = f"{GROUP}/task"
"""On a Job, its Secret and its pod: profile, train, evaluate, export or aggregate."""
LABEL_SITE: Final = f"{GROUP}/site"
"""Likewise the site's name, if the work is a site's."""
LABEL_ROUND: Final = f"{GROUP}/round"
"""Likewise the round, from 1; 0 for what belongs to none."""
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
"""Likewise the attempt, from 0."""
ANNOTATION_REASON: Final = f"{GROUP}/reason"
"""On a Job that the operator gave up before it ran: why, in one CamelCase word."""
ANNOTATION_MESSAGE: Final = f"{GROUP}/message"
"""Likewise in a sentence."""
FINALIZER: Final = f"{GROUP}/results"
"""On a run whose results are to be deleted with it."""
QUEUE_PREFIX: Final = "kueue.x-k8s.io/"
"""Labels of a run that its Jobs carry too, so that they wait in the same queue."""

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""RFC 1035: the names of what we make begin with it, and Services among them allow no leading digit."""
NAME_MAX = 63
NAMESPACE_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
OBJECT_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
"""RFC 1123: the name of a Secret, a claim or a class that others made."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_MAX)]
Namespace = Annotated[str, Field(pattern=NAMESPACE_PATTERN, max_length=NAME_MAX)]
ObjectName = Annotated[str, Field(pattern=OBJECT_PATTERN, max_length=253)]
LabelMap = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=64)]
AnnotationMap = Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)]
Sentence = Annotated[str, Field(max_length=1024)]
"""A reason or an explanation in a status."""


class ApiModel(BaseModel):
    """The base of every type of the API: frozen, camelCase in JSON, snake_case in Python, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        protected_namespaces=(),  # a field may be called `model`
    )

    def to_json(self) -> str:
        """This value as JSON text, keys in camelCase, unset optional fields left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2)


class Metadata(ApiModel):
    """The part of an object's metadata that the operator reads; what else the API server adds is passed over."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    namespace: Namespace = "default"
    labels: LabelMap = {}
    annotations: dict[str, str] = {}
    uid: str = ""
    generation: int = 1


class ConditionStatus(StrEnum):
    """Kubernetes' three-valued truth."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One observation of an object, as the Kubernetes API conventions want it."""

    type: Annotated[str, Field(max_length=63)]
    status: ConditionStatus
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=63)]
    message: Annotated[str, Field(max_length=4096)] = ""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    last_transition_time: Annotated[str, Field(max_length=32)] = ""
