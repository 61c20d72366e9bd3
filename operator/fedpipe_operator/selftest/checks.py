"""The checks of `helm test`. Each returns a sentence about what works, or raises one about what does not, and what to do."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from secrets import token_bytes
from typing import Final, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from fedpipe_operator.cluster.api import RUNS, SITES, Kind, Plain
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.planning import plan_round, plan_rows
from fedpipe_operator.selftest.toy_site import SITE, SPEC
from fedpipe_operator.store import Store

DEPLOYMENTS: Final = Kind("apps", "v1", "deployments")
_DISCOVERY: Final = Kind(RUNS.group, RUNS.version, "")
"""Its path is that of the group's own description, which everybody who is authenticated may read."""
_KEY: Final = "self-test/object"
_BYTES: Final = 1024
_URL_SECONDS: Final = 300
_HTTP_SECONDS: Final = 30
_READY_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 2.0


class Objects(Protocol):
    """The part of `cluster.api.Api` that the checks need."""

    def get(self, kind: Kind, namespace: str, name: str) -> Plain | None:
        """The object, None if there is none."""


def crds_are_served(api: Objects) -> str:
    """Whether the API server knows both kinds.

    Raises:
        UserError: `KindsMissing`; or what the API raises.
    """
    found = {one["name"] for one in (api.get(_DISCOVERY, "", "") or {}).get("resources", ())}
    missing = [kind.plural for kind in (RUNS, SITES) if kind.plural not in found]
    if missing:
        advice = "set crds.enabled to true, or apply the files of crds/"
        raise UserError("KindsMissing", f"the API server does not serve {' and '.join(missing)} of {RUNS.group}/{RUNS.version}: {advice}")
    return f"{RUNS.plural} and {SITES.plural} of {RUNS.group}/{RUNS.version} are served"


def operator_is_ready(api: Objects, namespace: str, name: str, *, clock: Callable[[], float], sleep: Callable[[float], None]) -> str:
    """Whether a pod of this version of the operator's Deployment is ready; it may take a minute.

    Raises:
        UserError: `OperatorMissing`, `OperatorNotReady`; or what the API raises.
    """
    ends_at = clock() + _READY_SECONDS
    while True:
        deployment = api.get(DEPLOYMENTS, namespace, name)
        if deployment is None:
            raise UserError("OperatorMissing", f"there is no Deployment {namespace}/{name}: install the chart again")
        if _is_ready(deployment):
            return f"a pod of the Deployment {namespace}/{name} is ready"
        if clock() >= ends_at:
            advice = f"see `kubectl logs deployment/{name} -n {namespace}` and `kubectl describe pods -n {namespace}`"
            raise UserError(
                "OperatorNotReady", f"no pod of the Deployment {namespace}/{name} is ready after {_READY_SECONDS:.0f} s: {advice}"
            )
        sleep(_PAUSE_SECONDS)


def _is_ready(deployment: Plain) -> bool:
    """Whether pods of the Deployment's newest version are ready: the status may still be about an older one."""
    status: Mapping[str, int] = deployment.get("status", {})
    is_current = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return is_current and min(status.get("updatedReplicas", 0), status.get("readyReplicas", 0)) > 0


def store_works(store: Store, send: Callable[[Request], bytes] | None = None) -> str:
    """Whether objects can be written and read, also by presigned URLs.

    Args:
        store: where one object is written, and deleted if the key pair may delete: a run needs no right to.
        send: sends a request and returns the answer's body; None: over the network.

    Raises:
        UserError: `StoreChanged`, `UrlRefused`; or what the store raises.
    """
    send, first, second = send or _send, token_bytes(_BYTES), token_bytes(_BYTES)
    store.write(_KEY, first)
    _require_same(store.read(_KEY), first, "written and read again")
    with _urls_of("write"):
        # Without a type, urllib calls it a form, as which some servers read it.
        headers = {"Content-Type": "application/octet-stream"}
        send(Request(store.url_to_write(_KEY, _URL_SECONDS), data=second, headers=headers, method="PUT"))  # noqa: S310 -- of the store's endpoint
    with _urls_of("read"):
        found = send(Request(store.url_to_read(_KEY, _URL_SECONDS)))  # noqa: S310 -- likewise
    _require_same(found, second, "written and read by presigned URLs")
    has_forms = store.form_to_write(_KEY, _URL_SECONDS, _BYTES) is not None
    forms = "uploads are bound to their size" if has_forms else "it has no forms that bind the size of uploads"
    return f"objects are written and read, also by presigned URLs; {forms}; {_deleted(store)}"


def _deleted(store: Store) -> str:
    try:
        store.delete(_KEY)
    except UserError:
        return f"the key pair may not delete, so spec.deletionPolicy: Delete would fail, and {_KEY} stays"
    return "they are deleted"


def _require_same(found: bytes | None, expected: bytes, what: str) -> None:
    if found != expected:
        raise UserError("StoreChanged", f"an object that was {what} is not the same: check what is between this pod and the store")


@contextmanager
def _urls_of(what: str) -> Iterator[None]:
    """A presigned URL's error as a sentence: without the URL, which is a credential."""
    advice = "a presigned URL is used from a pod by the same endpoint: check its address, the proxy, and the clocks"
    try:
        yield
    except HTTPError as error:
        raise UserError("UrlRefused", f"a presigned URL to {what} was answered with {error.code} {error.reason}: {advice}") from error
    except OSError as error:  # urllib's own, or of a socket
        why = error.reason if isinstance(error, URLError) else error
        raise TransientError("UrlUnreachable", f"a presigned URL to {what} got no answer ({why}): {advice}") from error


def _send(request: Request) -> bytes:
    with build_opener().open(request, timeout=_HTTP_SECONDS) as answer:
        content: bytes = answer.read(2 * _BYTES)
        return content


def toy_site_is_planned() -> str:
    """Whether this image can plan a site.

    Raises:
        UserError: `NoPlan`.
    """
    fleet = plan_round(SPEC, {SITE.name: SITE}, {})
    (row,) = plan_rows(fleet.plans, fleet.importance.scores)
    if not row.bits:
        raise UserError("NoPlan", f"a toy site was left out: {' '.join(row.why)}; this is an error of the image: report it")
    return f"a toy site trains {row.layers} layers at rank {row.rank}, {row.forecast}"
