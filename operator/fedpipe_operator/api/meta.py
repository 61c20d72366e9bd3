"""What both kinds share: the API group, object metadata, conditions, and the keys of labels and annotations."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP: Final = "fedpipe.io"
API_VERSION: Final = "fedpipe.io/v1alpha1"

VERSION: Final = "v1alpha1"

LABEL_OPERATOR_CLASS: Final = f"{GROUP}/operator-class"
"""On a run or a site: the class of the operator that reconciles it (the chart's `operatorClass`)."""
LABEL_RUN: Final = f"{GROUP}/run"
"""On every object that a run creates: the run's name."""
LABEL_RUN_UID: Final = f"{GROUP}/run-uid"
"""Also there: the run's uid, which distinguishes it from a deleted run of the same name."""
LABEL_TASK: Final = f"{GROUP}/task"
"""On a Job, its Secret and its pod: profile, train, evaluate, export or aggregate."""
LABEL_SITE: Final = f"{GROUP}/site"
"""Also there: the site's name, for the tasks of a site."""
LABEL_ROUND: Final = f"{GROUP}/round"
"""Also there: the round, from 1; 0 for tasks outside of rounds."""
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
"""Also there: the attempt, from 0."""
ANNOTATION_REASON: Final = f"{GROUP}/reason"
"""On a Job that the operator ended, as its pod could not start, or would have gone on after its task: the reason, one CamelCase word."""
ANNOTATION_MESSAGE: Final = f"{GROUP}/message"
"""Also there: the reason as a sentence."""
ANNOTATION_EXIT_CODE: Final = f"{GROUP}/exit-code"
"""Also there, after the task: with what its container ended."""
FINALIZER: Final = f"{GROUP}/results"
"""On a run whose objects in the store are deleted with it."""
QUEUE_PREFIX: Final = "kueue.x-k8s.io/"
"""Labels with this prefix are copied from a run to its Jobs, so that Kueue admits them through the same queue."""

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""RFC 1035: derived objects' names begin with it, and Services among them allow no leading digit."""
NAME_MAX = 63
NAMESPACE_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
OBJECT_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
"""RFC 1123: the name of a Secret, a PersistentVolumeClaim or a RuntimeClass that the user created."""

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
    """The part of an object's metadata that the operator reads; other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    name: Name
    namespace: Namespace = "default"
    labels: LabelMap = {}
    annotations: dict[str, str] = {}
    uid: str = ""
    generation: int = 1


class SecretReference(ApiModel):
    """A Secret of the run's namespace."""

    name: ObjectName


class ConditionStatus(StrEnum):
    """The status of a Kubernetes condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """A condition of an object, as defined by the Kubernetes API conventions."""

    type: Annotated[str, Field(max_length=63)]
    status: ConditionStatus
    reason: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=63)]
    message: Annotated[str, Field(max_length=4096)] = ""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    last_transition_time: Annotated[str, Field(max_length=32)] = ""
