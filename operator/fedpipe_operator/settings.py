"""The operator's settings on a cluster, read once from environment variables."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, cast, get_args

from fedpipe_operator.api import parse_quantity
from fedpipe_operator.api.pod_template import SYSTEM_CLASS
from fedpipe_operator.store_policy import ANY_STORE, StorePolicy, parse_store_policy

Value = TypeVar("Value")
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
LogFormat = Literal["json", "plain"]

_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_ENDPOINT: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_ALL_NAMESPACES: Final = "*"
_BOOLEANS: Final = {"true": True, "false": False}


@dataclass(frozen=True)
class Settings:
    """The administrator's settings for all runs. Each field is the variable `FEDPIPE_<FIELD>` and a value of the chart."""

    trainer_image: str
    operator_image: str
    """For aggregation Jobs."""
    namespaces: tuple[str, ...] = ()
    """Namespaces whose runs and sites are reconciled; empty: all of the cluster, for which the variable is `*`."""
    image_pull_policy: PullPolicy = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    """Names of image pull Secrets, which must exist in each run's namespace."""
    watch_nodes: bool = True
    """Whether the operator may list and watch nodes: needed to discover capacities and to detect pods that no node can ever schedule."""
    aggregation_job_threshold: int = 512 * 2**20
    """If a round's updates are larger than this (bytes), a Job aggregates them instead of a child process of the operator."""
    scratch: str = "20Gi"
    """Size limit of a trainer pod's scratch volume: the downloaded base model, checkpoints, the exported model."""
    job_ttl_seconds: int = 86400
    """How long a finished Job and its logs are kept."""
    pending_grace_seconds: int = 30
    """How long a pod may fail to start (missing image, volume or node) before its attempt counts as failed."""
    max_concurrent_reconciles: int = 8
    """Runs that are reconciled in parallel."""
    priority_classes: tuple[str, ...] = ()
    """Priority classes that a site may name for its trainer pods; by default none, since a pod of a higher priority evicts others."""
    store_policy: StorePolicy = ANY_STORE
    """Which endpoints, buckets and prefixes the runs of a namespace may name; by default any."""
    health_port: int = 8080
    metrics_port: int = 9090
    log_format: LogFormat = "json"
    tracing_endpoint: str = ""
    """Where traces are sent, by OTLP over HTTP; empty: there are none."""


def read(environ: Mapping[str, str]) -> Settings:
    """The settings in these environment variables.

    Raises:
        ValueError: a variable is missing or invalid (the message names it).
    """
    return Settings(
        trainer_image=_read(environ, "TRAINER_IMAGE", _image, None),
        operator_image=_read(environ, "OPERATOR_IMAGE", _image, None),
        namespaces=_read(environ, "NAMESPACES", _namespaces, None),
        image_pull_policy=_read(environ, "IMAGE_PULL_POLICY", _pull_policy, "IfNotPresent"),
        image_pull_secrets=_read(environ, "IMAGE_PULL_SECRETS", _comma_separated, ()),
        watch_nodes=_read(environ, "WATCH_NODES", _boolean, Settings.watch_nodes),
        aggregation_job_threshold=_read(environ, "AGGREGATION_JOB_THRESHOLD", _bytes, Settings.aggregation_job_threshold),
        scratch=_read(environ, "SCRATCH", _quantity, Settings.scratch),
        job_ttl_seconds=_read(environ, "JOB_TTL_SECONDS", _positive_integer, Settings.job_ttl_seconds),
        pending_grace_seconds=_read(environ, "PENDING_GRACE_SECONDS", _positive_integer, Settings.pending_grace_seconds),
        max_concurrent_reconciles=_read(environ, "MAX_CONCURRENT_RECONCILES", _positive_integer, Settings.max_concurrent_reconciles),
        priority_classes=_read(environ, "PRIORITY_CLASSES", _priority_classes, ()),
        store_policy=_read(environ, "STORE_POLICY", parse_store_policy, Settings.store_policy),
        health_port=_read(environ, "HEALTH_PORT", _positive_integer, Settings.health_port),
        metrics_port=_read(environ, "METRICS_PORT", _positive_integer, Settings.metrics_port),
        log_format=_read(environ, "LOG_FORMAT", _log_format, Settings.log_format),
        tracing_endpoint=_read(environ, "TRACING_ENDPOINT", _endpoint, Settings.tracing_endpoint),
    )


def _read(environ: Mapping[str, str], name: str, parse: Callable[[str], Value], default: Value | None) -> Value:
    text = environ.get(f"FEDPIPE_{name}", "")
    if not text:
        if default is None:
            raise ValueError(f"FEDPIPE_{name} is not set: set it, or install the operator with the chart, which sets it")
        return default
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"FEDPIPE_{name} is {text!r}: {error}") from error


def _image(text: str) -> str:
    if " " in text:
        raise ValueError("write an image name such as registry/name:tag")
    return text


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(entry for part in text.split(",") if (entry := part.strip()))


def _priority_classes(text: str) -> tuple[str, ...]:
    classes = _comma_separated(text)
    if any(name.startswith(SYSTEM_CLASS) for name in classes):
        raise ValueError(f"{SYSTEM_CLASS}… are for the cluster's own pods: name others, separated by commas")
    return classes


def _namespaces(text: str) -> tuple[str, ...]:
    """Exact names only: kopf accepts patterns, but the Kubernetes API lists one namespace or all of them."""
    if text == _ALL_NAMESPACES:
        return ()
    namespaces = _comma_separated(text)
    if not namespaces or not all(map(_NAMESPACE.fullmatch, namespaces)):
        raise ValueError("write namespace names separated by commas, or * for all of the cluster")
    return namespaces


def _pull_policy(text: str) -> PullPolicy:
    if text not in get_args(PullPolicy):
        raise ValueError(f"write one of {', '.join(get_args(PullPolicy))}")
    return cast("PullPolicy", text)


def _log_format(text: str) -> LogFormat:
    if text not in get_args(LogFormat):
        raise ValueError(f"write one of {', '.join(get_args(LogFormat))}")
    return cast("LogFormat", text)


def _endpoint(text: str) -> str:
    if not _ENDPOINT.fullmatch(text):
        raise ValueError("write a URL without a query, such as http://collector.tracing:4318")
    return text


def _boolean(text: str) -> bool:
    if text not in _BOOLEANS:
        raise ValueError("write true or false")
    return _BOOLEANS[text]


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("write a whole number above 0")
    return int(text)


def _quantity(text: str) -> str:
    parse_quantity(text)
    return text


def _bytes(text: str) -> int:
    return int(parse_quantity(text))
