"""What kube-state-metrics makes of an object by a configuration of its CustomResourceState, as its documentation describes it.

kube-state-metrics itself cannot be built here: the module proxy serves no version of it. Only what our configuration uses is here, and a
field that is not known is an error, as it is there.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel
from scrapes import Scrape, Series, series

Paths = dict[str, tuple[str, ...]]
_FIND = re.compile(r"\[(\w+)=(\w+)\]")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


class _Gauge(_Strict):
    path: tuple[str, ...]
    label_from_key: str = ""
    labels_from_path: Paths = {}
    value_from: tuple[str, ...] = ()
    nil_is_zero: bool = False


class _StateSet(_Strict):
    path: tuple[str, ...]
    label_name: str
    list: tuple[str, ...]
    labels_from_path: Paths = {}
    value_from: tuple[str, ...] = ()


class _Info(_Strict):
    path: tuple[str, ...] = ()
    labels_from_path: Paths


class Each(_Strict):
    """One of three, which `type` names."""

    type: Literal["Gauge", "StateSet", "Info"]
    gauge: _Gauge | None = None
    state_set: _StateSet | None = None
    info: _Info | None = None

    @model_validator(mode="after")
    def _require_the_named_one(self) -> "Each":
        given = {name for name in ("gauge", "state_set", "info") if getattr(self, name) is not None}
        assert given == {{"Gauge": "gauge", "StateSet": "state_set", "Info": "info"}[self.type]}, f"{self.type} has {given}"
        return self

    @property
    def body(self) -> _Gauge | _StateSet | _Info:
        """That one."""
        found = self.gauge or self.state_set or self.info
        assert found is not None
        return found


class CustomMetric(_Strict):
    """A metric."""

    name: str
    help: str
    each: Each
    labels_from_path: Paths = {}
    common_labels: dict[str, str] = {}
    error_log_v: int = 0


class Kind(_Strict):
    """Of which objects."""

    group: str
    version: str
    kind: str


class Resource(_Strict):
    """The metrics of one kind of objects."""

    group_version_kind: Kind
    metrics: tuple[CustomMetric, ...]
    metric_name_prefix: str = "kube_customresource"
    labels_from_path: Paths = {}
    common_labels: dict[str, str] = {}
    error_log_v: int = 0


class _Spec(_Strict):
    resources: tuple[Resource, ...]


class Configuration(_Strict):
    """The file."""

    kind: Literal["CustomResourceStateMetrics"]
    spec: _Spec


def resolve(value: Any, path: Sequence[str]) -> Any:
    """The field at this path; None if a part of it is missing."""
    for part in path:
        if value is None:
            return None
        lookup = _FIND.fullmatch(part)
        if lookup and isinstance(value, list):
            value = next((one for one in value if one.get(lookup[1]) == lookup[2]), None)
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def scrape_of(configuration: Configuration, body: Mapping[str, Any]) -> Scrape:
    """The series of an object, with their whole names."""
    kind = f"{body['apiVersion']}/{body['kind']}"
    found: dict[Series, float] = {}
    for resource in configuration.spec.resources:
        of = resource.group_version_kind
        if f"{of.group}/{of.version}/{of.kind}" == kind:
            for metric in resource.metrics:
                for labels, value in _series(resource, metric, body):
                    key = series(f"{resource.metric_name_prefix}_{metric.name}", **labels)
                    assert key not in found, f"{key} is there twice"
                    found[key] = value
    return Scrape(found)


def _series(resource: Resource, metric: CustomMetric, body: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], float]]:
    of = resource.group_version_kind
    kind = {"customresource_group": of.group, "customresource_version": of.version, "customresource_kind": of.kind}
    base = kind | _labels(body, resource.labels_from_path | metric.labels_from_path)
    each = metric.each.body
    value = resolve(body, each.path)
    for labels, number in _states(each, value) if isinstance(each, _StateSet) else _numbers(each, value):
        yield base | labels, number


def _states(each: _StateSet, value: Any) -> Iterator[tuple[dict[str, str], float]]:
    for one in value if isinstance(value, list) else [value]:
        state = resolve(one, each.value_from)
        if isinstance(state, str):
            yield from (({each.label_name: name} | _labels(one, each.labels_from_path), float(name == state)) for name in each.list)


def _numbers(each: _Gauge | _Info, value: Any) -> Iterator[tuple[dict[str, str], float]]:
    if isinstance(each, _Info):
        if value is not None:
            yield _labels(value, each.labels_from_path), 1.0
    elif isinstance(value, Mapping):
        for key, one in value.items():
            number = _number(resolve(one, each.value_from))
            if number is not None:
                yield {each.label_from_key: key}, number
    elif (number := _number(value)) is not None:
        yield {}, number


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return datetime.fromisoformat(value).timestamp() if re.match(r"\d{4}-\d\d-\d\dT", value) else None
    return None if value is None else float(value)


def _labels(value: Any, paths: Paths) -> dict[str, str]:
    found = {name: resolve(value, path) for name, path in paths.items()}
    return {name: str(text) for name, text in found.items() if text is not None}
