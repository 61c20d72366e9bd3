"""The calls to the Kubernetes API: plain dicts in and out, every failure translated. The only file that imports the client.

It does not retry: a reconcile that meets a transient error ends, and the work queue retries it.
"""

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final
from urllib.parse import quote, urlencode

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from fedpipe_operator import tracing
from fedpipe_operator.cluster.api_errors import error_of_response, error_without_response
from fedpipe_operator.errors import UserError
from fedpipe_operator.observer import Observer, timed

Plain = dict[str, Any]

_TIMEOUT_SECONDS: Final = (5.0, 30.0)
_LEASE_TIMEOUT_SECONDS: Final = (1.0, 2.0)
"""Within a leader's ten seconds, two renewals may fail."""
_REVIEW_TIMEOUT_SECONDS: Final = (2.0, 5.0)
"""A person waits for it."""
_BAD: Final = 400
_JSON: Final = "application/json"
_METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PAGE: Final = 500
_MOST_LOG_BYTES: Final = 2**20
_WITHOUT_NAME: Final = {"GET": "list", "DELETE": "deletecollection"}
_FROM_WATCH_CACHE: Final = {"resourceVersion": "0"}
_USERS_ADVICE: Final = "your user lacks this right: ask an admin of the namespace for a role that has it"
MERGE: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"


@dataclass(frozen=True)
class Kind:
    """A kind of object, as the API's paths spell it."""

    group: str
    version: str
    plural: str

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """The path of the kind's objects in a namespace (empty: in all of the cluster), of one of them, or of its subresource."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, "namespaces" if namespace else "", namespace, self.plural, name, subresource]
        return "/".join(quote(part, safe="/") for part in parts if part)


JOBS: Final = Kind("batch", "v1", "jobs")
PODS: Final = Kind("", "v1", "pods")
SECRETS: Final = Kind("", "v1", "secrets")
EVENTS: Final = Kind("", "v1", "events")
NODES: Final = Kind("", "v1", "nodes")
LEASES: Final = Kind("coordination.k8s.io", "v1", "leases")
TOKEN_REVIEWS: Final = Kind("authentication.k8s.io", "v1", "tokenreviews")
ACCESS_REVIEWS: Final = Kind("authorization.k8s.io", "v1", "subjectaccessreviews")
RUNS: Final = Kind("fedpipe.io", "v1alpha1", "federatedfinetunes")
SITES: Final = Kind("fedpipe.io", "v1alpha1", "edgesites")


def _span_name(_api: object, method: str, kind: Kind, *_: object, **__: object) -> str:
    return f"{method} {kind.plural}"


@dataclass
class Api:
    """The API server of one cluster. Thread-safe. Raises `errors.TransientError` or `errors.UserError`."""

    client: client.ApiClient
    changing: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around each call that changes something; it raises where this replica may not act."""
    timeout_seconds: tuple[float, float] = _TIMEOUT_SECONDS
    """To connect, and between two parts of an answer."""
    when_forbidden: str = "the operator's role lacks this right: install the chart's own"
    """What to do about it, for a message."""
    observer: Observer = field(default_factory=Observer)

    def get(self, kind: Kind, namespace: str, name: str) -> Plain | None:
        """The object, None if there is none."""
        return self._call("GET", kind, namespace, name, absent_is_none=True)

    def serves(self, kind: Kind, namespace: str) -> bool:
        """Whether the API server knows this kind at all."""
        return self._call("GET", kind, namespace, absent_is_none=True, query={"limit": "1"}) is not None

    def find(
        self,
        kind: Kind,
        namespace: str,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
        may_be_old: bool = False,
    ) -> list[Plain]:
        """The objects with all these labels and fields; if they may be some moments old, from the API server's watch cache.

        Without the cache, API servers read all objects of the kind from etcd, however few match.
        """
        selectors = {"labelSelector": _selector(labels or {}), "fieldSelector": _selector(fields or {})}
        query = {name: text for name, text in selectors.items() if text} | (_FROM_WATCH_CACHE if may_be_old else {})
        found = self._call("GET", kind, namespace, query=query)
        items: list[Plain] = found["items"] if found else []
        return items

    def names(
        self, kind: Kind, namespace: str, *, label: str = "", keep: Callable[[Plain], bool] = lambda _metadata: True
    ) -> dict[str, str]:
        """The names by uid of all objects that carry this label with any value ("": of all) and whose metadata is kept. Paged."""
        found: dict[str, str] = {}
        query = {"limit": str(_PAGE)} | ({"labelSelector": label} if label else {})
        while True:
            page = self._call("GET", kind, namespace, query=query, accept=_METADATA)
            metas = [item["metadata"] for item in page["items"] or ()] if page else []  # the API server writes null for an empty list
            found |= {meta["uid"]: meta["name"] for meta in metas if keep(meta)}
            token = page["metadata"].get("continue", "") if page else ""
            if not token:
                return found
            query["continue"] = token

    def log(self, namespace: str, pod: str, container: str, *, lines: int) -> str:
        """The last lines of the log of a pod's container, of which at most the first MiB; empty if the pod or its log is gone."""
        return self._log(namespace, pod, {"container": container, "tailLines": str(lines)}).decode(errors="replace")

    def log_since(self, namespace: str, pod: str, container: str, *, since: str, lines: int | None) -> tuple[str, bool]:
        """The same with the time of each line, and whether there is more than that MiB.

        Args:
            namespace: the pod's.
            pod: its name.
            container: the container's.
            since: the second from which on, as RFC 3339 writes it; empty: the last `lines`.
            lines: how many; None: all.
        """
        where = {"sinceTime": since} if since else {"tailLines": str(lines)} if lines is not None else {}
        found = self._log(namespace, pod, {"container": container, "timestamps": "true"} | where)
        return found.decode(errors="replace"), len(found) >= _MOST_LOG_BYTES

    def _log(self, namespace: str, pod: str, query: Mapping[str, str]) -> bytes:
        limited = dict(query) | {"limitBytes": str(_MOST_LOG_BYTES)}
        return self._request("GET", PODS, namespace, pod, "log", body=None, query=limited, headers={"Accept": "*/*"}, absent={404}) or b""

    def create(self, kind: Kind, namespace: str, body: Plain) -> Plain | None:
        """The object as it was created; None if one of this name exists."""
        return self._call("POST", kind, namespace, body=body, taken_is_none=True)

    def merge(self, kind: Kind, namespace: str, name: str, body: Plain) -> Plain | None:
        """Change these fields; None if there is no such object."""
        return self._call("PATCH", kind, namespace, name, body=body, content_type=MERGE, absent_is_none=True)

    def replace_status(self, kind: Kind, namespace: str, name: str, status: Plain) -> Plain | None:
        """Replace the whole status; the object as it is then, None if there is none."""
        patch = [{"op": "add", "path": "/status", "value": status}]
        return self._call("PATCH", kind, namespace, name, "status", body=patch, content_type=JSON_PATCH, absent_is_none=True)

    def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, foreground: bool = False) -> None:
        """Delete the object; in the foreground it stays until its dependents are gone.

        An object that does not exist is no error, and a newer object of the same name is kept.
        """
        options = {"propagationPolicy": "Foreground" if foreground else "Background", "preconditions": {"uid": uid}}
        self._call("DELETE", kind, namespace, name, body=options, absent_is_none=True, taken_is_none=True)

    def delete_all(self, kind: Kind, namespace: str, labels: Mapping[str, str], *, foreground: bool = False) -> None:
        """Delete the objects that carry all these labels; `foreground` as for `delete`."""
        policy = "Foreground" if foreground else "Background"
        self._call("DELETE", kind, namespace, query={"labelSelector": _selector(labels), "propagationPolicy": policy})

    @tracing.traced(_span_name)
    def _call(  # noqa: PLR0913 -- everything that a request consists of
        self,
        method: str,
        kind: Kind,
        namespace: str,
        name: str = "",
        subresource: str = "",
        *,
        body: Plain | list[Plain] | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        absent_is_none: bool = False,
        taken_is_none: bool = False,
    ) -> Plain | None:
        """The object of the response."""
        data = self._request(
            method,
            kind,
            namespace,
            name,
            subresource,
            body=body,
            query=query,
            headers={"Accept": accept, "Content-Type": content_type},
            absent=({404} if absent_is_none else set()) | ({409} if taken_is_none else set()),
        )
        return None if data is None else json.loads(data)

    def _request(  # noqa: PLR0913 -- as above
        self,
        method: str,
        kind: Kind,
        namespace: str,
        name: str,
        subresource: str,
        *,
        body: Plain | list[Plain] | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        absent: Collection[int],
    ) -> bytes | None:
        """The body of the response; None if its status is one of `absent`."""
        what = f"{method} {kind.plural}{f'/{subresource}' if subresource else ''}"
        path = kind.path(namespace, name, subresource) + (f"?{urlencode(query)}" if query else "")
        request = self.client.param_serialize(method, path, header_params=dict(headers), body=body, auth_settings=["BearerToken"])
        with timed(partial(self.observer.kube_called, verb_of(method, name))):
            with nullcontext() if method == "GET" else self.changing():
                status, data = self._answer(request, f"{what} {namespace}/{name}")
            if status in absent:
                return None
            if status >= _BAD:
                raise error_of_response(status, data, f"{what} {namespace}/{name}", self.when_forbidden)
        return data

    def _answer(self, request: tuple[str, str, dict[str, str], Any, list[str]], what: str) -> tuple[int, bytes]:
        try:
            answer = self.client.call_api(*request, _request_timeout=self.timeout_seconds)
            return answer.status, answer.read()  # type: ignore[no-untyped-call]
        except (HTTPError, OSError) as error:
            raise error_without_response(error, what) from error


@dataclass(frozen=True)
class KubeContext:
    """A context of the user's kubeconfig."""

    api: Api
    namespace: str
    """Its default namespace."""


def of_kubeconfig(context: str | None) -> KubeContext:
    """The API server of this context of the user's kubeconfig; None: of its current one.

    Raises:
        UserError: `KubeconfigInvalid`.
    """
    try:
        configuration = client.Configuration()
        config.load_kube_config(context=context, client_configuration=configuration)  # type: ignore[no-untyped-call]
        contexts, current = config.list_kube_config_contexts()  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise UserError("KubeconfigInvalid", f"{error}: set KUBECONFIG or --context") from error
    chosen = next((one for one in contexts if one["name"] == context), current)
    configuration.retries = False
    return KubeContext(Api(client.ApiClient(configuration), when_forbidden=_USERS_ADVICE), chosen["context"].get("namespace", "default"))


def verb_of(method: str, name: str) -> str:
    """The verb of a request, as RBAC has it."""
    if not name and method in _WITHOUT_NAME:
        return _WITHOUT_NAME[method]
    return {"POST": "create"}.get(method, method.lower())


def in_cluster(changing: Callable[[], AbstractContextManager[None]] = nullcontext, observer: Observer | None = None) -> Api:
    """The API server of the cluster that this pod runs in, else that of the user's kubeconfig; the arguments as in `Api`."""
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except config.ConfigException:
        config.load_kube_config()  # type: ignore[no-untyped-call]
    settings = client.Configuration.get_default_copy()
    settings.connection_pool_maxsize = 32
    settings.retries = False
    return Api(client.ApiClient(settings), changing, observer=observer or Observer())


def for_leases(api: Api) -> Api:
    """The same API server for the elector: it writes the Lease whoever leads, and waits no longer than a renewal may take."""
    return replace(api, changing=nullcontext, timeout_seconds=_LEASE_TIMEOUT_SECONDS)


def for_reviews(api: Api) -> Api:
    """The same API server for questions about callers, which are asked by every replica: a review changes nothing."""
    return replace(api, changing=nullcontext, timeout_seconds=_REVIEW_TIMEOUT_SECONDS)


def _selector(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
