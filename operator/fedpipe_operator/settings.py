"""The operator's settings on a cluster, read once from environment variables."""

import json
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeVar, cast, get_args

from pydantic import ValidationError

from fedpipe_operator.api import StoreSpec, parse_quantity
from fedpipe_operator.api.pod_template import SYSTEM_CLASS
from fedpipe_operator.pod_settings import (
    AGGREGATION_JOB,
    EXPORT_JOB,
    IMAGE_CERTIFICATES,
    JOB_POD_SECURITY,
    NO_PROXY,
    NO_REPORTS,
    NO_TOKEN,
    CaBundle,
    PodDefaults,
    Proxy,
    ReportServer,
    SecretKey,
    parse_as,
)
from fedpipe_operator.store_identity import NO_IDENTITY, StoreIdentity
from fedpipe_operator.store_policy import ANY_STORE, StorePolicy, parse_store_policy

Value = TypeVar("Value")
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
LogFormat = Literal["json", "plain"]

_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
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
    operator_class: str = ""
    """Only runs and sites whose label `fedpipe.io/operator-class` has this value are reconciled; empty: those without the label."""
    default_store: StoreSpec | None = None
    """The store of the runs that name none."""
    store_identity: StoreIdentity = NO_IDENTITY
    """The role with which the operator opens the default store; by default it opens it by each run's own Secret."""
    store_policy: StorePolicy = ANY_STORE
    """Which endpoints, buckets and prefixes the runs of a namespace may name; by default any."""
    ca_bundle: CaBundle = IMAGE_CERTIFICATES
    """What every pod trusts, unless its site names certificates of its own; by default its image's."""
    proxy: Proxy = NO_PROXY
    """Through which every pod connects to stores and hubs, unless its site names another."""
    hugging_face_endpoint: str = ""
    """The mirror from which a model `hf://…` is fetched, unless its site names another; empty: the hub itself."""
    hugging_face_token_secret_ref: SecretKey = NO_TOKEN
    """The token with which a model `hf://…` is fetched, in each run's namespace."""
    export_job: PodDefaults = EXPORT_JOB
    aggregation_job: PodDefaults = AGGREGATION_JOB
    job_pod_security_context: Mapping[str, Any] = field(default_factory=lambda: JOB_POD_SECURITY)
    """Of the pods of all Jobs; their containers' is fixed."""
    health_port: int = 8080
    metrics_port: int = 9090
    reports: ReportServer = NO_REPORTS
    """Where and for whom the reports of runs are served; by default nowhere."""
    log_format: LogFormat = "json"
    tracing_endpoint: str = ""
    """Where traces are sent, by OTLP over HTTP; empty: there are none."""


@dataclass(frozen=True)
class Replica:
    """Which replica of which release this process is: set by the chart's Deployment, not by a value of its own."""

    pod: str
    """Its name, by which it holds the Lease."""
    lease: str
    """The Lease's name: the release's."""
    namespace: str
    """The Lease's, and the release's."""
    memory_bytes: int = 2 * 2**30
    """What its container may use; by default as in the chart."""


def read_replica(environ: Mapping[str, str]) -> Replica:
    """The replica in these environment variables. Outside of a pod there is one, which is named after its machine."""
    return Replica(
        pod=environ.get("FEDPIPE_POD_NAME") or platform.node(),
        lease=environ.get("FEDPIPE_LEASE_NAME") or "fedpipe",
        namespace=environ.get("FEDPIPE_POD_NAMESPACE") or "default",
        memory_bytes=_read(environ, "MEMORY_BYTES", _bytes, Replica.memory_bytes),
    )


def read(environ: Mapping[str, str]) -> Settings:
    """The settings in these environment variables.

    Raises:
        ValueError: a variable is missing or invalid (the message names it).
    """
    default_store = _read(environ, "DEFAULT_STORE", _store, Settings.default_store)
    return Settings(
        trainer_image=_require(environ, "TRAINER_IMAGE", _image),
        operator_image=_require(environ, "OPERATOR_IMAGE", _image),
        namespaces=_require(environ, "NAMESPACES", _namespaces),
        image_pull_policy=_read(environ, "IMAGE_PULL_POLICY", _pull_policy, "IfNotPresent"),
        image_pull_secrets=_read(environ, "IMAGE_PULL_SECRETS", _comma_separated, ()),
        watch_nodes=_read(environ, "WATCH_NODES", _boolean, Settings.watch_nodes),
        aggregation_job_threshold=_read(environ, "AGGREGATION_JOB_THRESHOLD", _bytes, Settings.aggregation_job_threshold),
        scratch=_read(environ, "SCRATCH", _quantity, Settings.scratch),
        job_ttl_seconds=_read(environ, "JOB_TTL_SECONDS", _positive_integer, Settings.job_ttl_seconds),
        pending_grace_seconds=_read(environ, "PENDING_GRACE_SECONDS", _positive_integer, Settings.pending_grace_seconds),
        max_concurrent_reconciles=_read(environ, "MAX_CONCURRENT_RECONCILES", _positive_integer, Settings.max_concurrent_reconciles),
        priority_classes=_read(environ, "PRIORITY_CLASSES", _priority_classes, ()),
        operator_class=_read(environ, "OPERATOR_CLASS", _label_value, ""),
        default_store=default_store,
        store_identity=_read(environ, "STORE_IDENTITY", partial(_identity, default_store), Settings.store_identity),
        store_policy=_read(environ, "STORE_POLICY", parse_store_policy, Settings.store_policy),
        ca_bundle=_read(environ, "CA_BUNDLE", parse_as(CaBundle), Settings.ca_bundle),
        proxy=_read(environ, "PROXY", parse_as(Proxy), Settings.proxy),
        hugging_face_endpoint=_read(environ, "HUGGING_FACE_ENDPOINT", _endpoint, Settings.hugging_face_endpoint),
        hugging_face_token_secret_ref=_read(
            environ, "HUGGING_FACE_TOKEN_SECRET_REF", parse_as(SecretKey), Settings.hugging_face_token_secret_ref
        ),
        export_job=_read(environ, "EXPORT_JOB", parse_as(PodDefaults), Settings.export_job),
        aggregation_job=_read(environ, "AGGREGATION_JOB", parse_as(PodDefaults), Settings.aggregation_job),
        job_pod_security_context=_read(environ, "JOB_POD_SECURITY_CONTEXT", _json_object, JOB_POD_SECURITY),
        health_port=_read(environ, "HEALTH_PORT", _positive_integer, Settings.health_port),
        metrics_port=_read(environ, "METRICS_PORT", _positive_integer, Settings.metrics_port),
        reports=_read(environ, "REPORTS", parse_as(ReportServer), Settings.reports),
        log_format=_read(environ, "LOG_FORMAT", _log_format, Settings.log_format),
        tracing_endpoint=_read(environ, "TRACING_ENDPOINT", _endpoint, Settings.tracing_endpoint),
    )


def _require(environ: Mapping[str, str], name: str, parse: Callable[[str], Value]) -> Value:
    if not environ.get(f"FEDPIPE_{name}"):
        raise ValueError(f"FEDPIPE_{name} is not set: set it, or install the operator with the chart, which sets it")
    return _parsed(environ, name, parse)


def _read(environ: Mapping[str, str], name: str, parse: Callable[[str], Value], default: Value) -> Value:
    return _parsed(environ, name, parse) if environ.get(f"FEDPIPE_{name}") else default


def _parsed(environ: Mapping[str, str], name: str, parse: Callable[[str], Value]) -> Value:
    text = environ[f"FEDPIPE_{name}"]
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


def _label_value(text: str) -> str:
    if not _LABEL_VALUE.fullmatch(text):
        raise ValueError("write the value of a label: at most 63 letters, digits, dashes, dots and underscores")
    return text


def _store(text: str) -> StoreSpec | None:
    """The store in this JSON object, with the fields of a run's spec.store; None if the object is empty."""
    if text == "{}":
        return None
    try:
        return StoreSpec.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ValueError(f"write a JSON object with the fields of spec.store: {problems}") from error


def _identity(default_store: StoreSpec | None, text: str) -> StoreIdentity:
    """The identity in this JSON object, for this store."""
    identity = parse_as(StoreIdentity)(text)
    if (problem := identity.problem(default_store)) is not None:
        raise ValueError(problem)
    return identity


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
        raise ValueError("write a URL without a query, such as https://host.example:4318")
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


def _json_object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"write a JSON object: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("write a JSON object")  # noqa: TRY004 -- it is a setting's text that is wrong
    return document


def _bytes(text: str) -> int:
    return int(parse_quantity(text))
