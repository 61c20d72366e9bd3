"""The environment, read once: all that the operator on a cluster takes from it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, cast, get_args

from fedpipe_operator.api import amount

Value = TypeVar("Value")
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
LogFormat = Literal["json", "plain"]

_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TRUTHS: Final = {"true": True, "false": False}


@dataclass(frozen=True)
class Settings:
    """What an administrator decides for all runs. Each field is the variable `FEDPIPE_<FIELD>` and a value of the chart."""

    trainer_image: str
    operator_image: str
    """For the Jobs that aggregate."""
    namespaces: tuple[str, ...] = ()
    """Those that are served; none: all of the cluster."""
    image_pull_policy: PullPolicy = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets of the runs' namespaces with which their pods pull images."""
    watch_nodes: bool = True
    """Whether the operator may see nodes: capacities are discovered, and pods that no node can ever take are told from those that wait."""
    aggregation_limit: int = 512 * 2**20
    """Bytes of a round's updates above which a Job aggregates them instead of a process of the operator."""
    scratch: str = "20Gi"
    """What a trainer pod may write to its scratch volume: a downloaded base, checkpoints, the exported model."""
    job_ttl_seconds: int = 86400
    """How long a finished Job and its log stay."""
    pending_grace_seconds: int = 30
    """How long a pod may fail to start (no such image, no such volume, no such node) before its attempt counts as failed."""
    threads: int = 8
    """Runs that are looked at side by side."""
    health_port: int = 8080
    log_format: LogFormat = "json"


def read(environ: Mapping[str, str]) -> Settings:
    """The settings in these environment variables.

    Raises:
        ValueError: a variable is missing or has no meaning (the message names it).
    """
    return Settings(
        trainer_image=_read(environ, "TRAINER_IMAGE", _image, None),
        operator_image=_read(environ, "OPERATOR_IMAGE", _image, None),
        namespaces=_read(environ, "NAMESPACES", _namespaces, ()),
        image_pull_policy=_read(environ, "IMAGE_PULL_POLICY", _pull_policy, "IfNotPresent"),
        image_pull_secrets=_read(environ, "IMAGE_PULL_SECRETS", _words, ()),
        watch_nodes=_read(environ, "WATCH_NODES", _truth, Settings.watch_nodes),
        aggregation_limit=_read(environ, "AGGREGATION_LIMIT", _bytes, Settings.aggregation_limit),
        scratch=_read(environ, "SCRATCH", _quantity, Settings.scratch),
        job_ttl_seconds=_read(environ, "JOB_TTL_SECONDS", _count, Settings.job_ttl_seconds),
        pending_grace_seconds=_read(environ, "PENDING_GRACE_SECONDS", _count, Settings.pending_grace_seconds),
        threads=_read(environ, "THREADS", _count, Settings.threads),
        health_port=_read(environ, "HEALTH_PORT", _count, Settings.health_port),
        log_format=_read(environ, "LOG_FORMAT", _log_format, Settings.log_format),
    )


def _read(environ: Mapping[str, str], name: str, kind: Callable[[str], Value], default: Value | None) -> Value:
    text = environ.get(f"FEDPIPE_{name}", "")
    if not text:
        if default is None:
            raise ValueError(f"FEDPIPE_{name} is not set: the chart sets it, or give it by hand")
        return default
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"FEDPIPE_{name} is {text!r}: {error}") from error


def _image(text: str) -> str:
    if " " in text:
        raise ValueError("write the name of an image, such as registry/name:tag")
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for part in text.split(",") if (word := part.strip()))


def _namespaces(text: str) -> tuple[str, ...]:
    """By their names: kopf would take patterns too, but the API serves one namespace at a time, or all."""
    named = _words(text)
    if not all(map(_NAMESPACE.fullmatch, named)):
        raise ValueError("write names of namespaces, with commas between them")
    return named


def _pull_policy(text: str) -> PullPolicy:
    if text not in get_args(PullPolicy):
        raise ValueError(f"write one of {', '.join(get_args(PullPolicy))}")
    return cast("PullPolicy", text)


def _log_format(text: str) -> LogFormat:
    if text not in get_args(LogFormat):
        raise ValueError(f"write one of {', '.join(get_args(LogFormat))}")
    return cast("LogFormat", text)


def _truth(text: str) -> bool:
    if text not in _TRUTHS:
        raise ValueError("write true or false")
    return _TRUTHS[text]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError("write a whole number above 0")
    return int(text)


def _quantity(text: str) -> str:
    amount(text)
    return text


def _bytes(text: str) -> int:
    return int(amount(text))
