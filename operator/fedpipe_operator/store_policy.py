"""The administrator's policy for stores: which endpoints, buckets and prefixes the runs of a namespace may name. Pure.

A tracker is a server that the operator calls for a run, as a store is: it must be at one of the endpoints.

By default a run may name any: it brings its own key pair, and the store decides what that opens. Addresses that are refused whatever a
policy says are in `store.addresses`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fedpipe_operator.api import FineTuneSpec, StoreSpec

AWS: Final = "AWS"
"""Stands for the endpoint of a run that names none."""
OTHERS: Final = "*"
"""Stands for all namespaces that have no rule of their own."""
_LISTS: Final = ("endpoints", "buckets", "prefixes")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_ENDPOINT: Final = re.compile(r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?/?")
_ORIGIN: Final = re.compile(r"https?://[^/]+")
BUCKET_SCHEME: Final = "s3://"


@dataclass(frozen=True)
class StoreRule:
    """What the runs of one namespace may name. An empty list allows everything."""

    endpoints: tuple[str, ...] = ()
    """URLs, or `AWS`. Of stores and of trackers."""
    buckets: tuple[str, ...] = ()
    """Of the results, and of a model `s3://BUCKET/…`."""
    prefixes: tuple[str, ...] = ()
    """Folders: what a run reads and writes lies in one of them. Of the results, and of a model `s3://…/PREFIX/…`."""


@dataclass(frozen=True)
class StorePolicy:
    """The rules of all namespaces."""

    rules: Mapping[str, StoreRule] = field(default_factory=dict)
    """By namespace, or `OTHERS`."""

    def problem(self, namespace: str, spec: FineTuneSpec) -> str | None:
        """The first thing in the run's spec that its namespace may not use; None if it may use all of it."""
        rule = self.rules.get(namespace, self.rules.get(OTHERS, StoreRule()))
        return next(_problems(rule, spec), None)

    def tracker_problem(self, namespace: str, tracking_uri: str) -> str | None:
        """Why the runs of this namespace may not name this tracker; None: they may. It is held to the list of the endpoints.

        Apart from `problem`, since a run goes on without its trackers.
        """
        rule = self.rules.get(namespace, self.rules.get(OTHERS, StoreRule()))
        origin = _ORIGIN.match(tracking_uri)
        if not rule.endpoints or (origin and _normalised(origin[0]) in map(_normalised, rule.endpoints)):
            return None
        what = f"spec.tracking.mlflow.trackingUri {tracking_uri} is at none of the endpoints that the operator's policy allows here"
        return f"{what}: {', '.join(rule.endpoints)}"


ANY_STORE: Final = StorePolicy()


def parse_store_policy(text: str) -> StorePolicy:
    """The policy of a JSON object: by namespace, the lists of a `StoreRule`.

    Raises:
        ValueError: it is no such object; the message names what is wrong.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"write a JSON object: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("write a JSON object: a rule for each namespace")  # noqa: TRY004 -- it is a setting's text that is wrong
    return StorePolicy({namespace: _rule(namespace, one) for namespace, one in document.items()})


def _rule(namespace: str, lists: Any) -> StoreRule:  # noqa: ANN401 -- whatever JSON holds
    if not isinstance(lists, dict) or not set(lists) <= set(_LISTS):
        raise ValueError(f"{namespace}: write an object with the lists {', '.join(_LISTS)}")
    for name, entries in lists.items():
        if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
            raise ValueError(f"{namespace}.{name}: write a list of texts, none of them empty")
    return StoreRule(**{name: tuple(entries) for name, entries in lists.items()})


def _problems(rule: StoreRule, spec: FineTuneSpec) -> Iterator[str]:
    if spec.store is not None:
        yield from _problems_of_store(rule, spec.store)
    if spec.model.source.startswith(BUCKET_SCHEME):
        bucket, _, folder = spec.model.source.removeprefix(BUCKET_SCHEME).partition("/")
        yield from _problems_of_folder(rule, "spec.model.source", bucket, folder)


def _problems_of_store(rule: StoreRule, store: StoreSpec) -> Iterator[str]:
    named = {"endpoint": store.endpoint or AWS} | ({"trainerEndpoint": store.trainer_endpoint} if store.trainer_endpoint else {})
    for field_, endpoint in named.items():
        if rule.endpoints and _normalised(endpoint) not in map(_normalised, rule.endpoints):
            listed = ", ".join(rule.endpoints)
            yield f"spec.store.{field_} {endpoint} is none of the endpoints that the operator's policy allows here: {listed}"
    yield from _problems_of_folder(rule, "spec.store", store.bucket, store.prefix)


def _problems_of_folder(rule: StoreRule, where: str, bucket: str, folder: str) -> Iterator[str]:
    if rule.buckets and bucket not in rule.buckets:
        yield f"{where}: the bucket {bucket} is none that the operator's policy allows here: {', '.join(rule.buckets)}"
    if rule.prefixes and not any(lies_in(folder, prefix) for prefix in rule.prefixes):
        yield f"{where}: the prefix {folder!r} lies in none that the operator's policy allows here: {', '.join(rule.prefixes)}"


def lies_in(folder: str, prefix: str) -> bool:
    """Whether the folder is `prefix` or lies in it: `runs-of-others` does not lie in `runs`."""
    return f"{folder.strip('/')}/".startswith(f"{prefix.strip('/')}/")


def _normalised(endpoint: str) -> str:
    """The endpoint as it is compared: without a default port, a final slash, or capitals in the host.

    What is not plainly a host and a port is compared as it is: parsers disagree about what it names.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        return endpoint
    scheme, host, port = match.groups()
    return f"{scheme}://{host.lower()}:{int(port) if port else _DEFAULT_PORTS[scheme]}"
