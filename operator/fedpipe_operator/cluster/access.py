"""Who calls, and what they may read: the API server decides, by TokenReview and SubjectAccessReview. No token is kept or logged."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedpipe_operator.cluster.api import ACCESS_REVIEWS, RUNS, TOKEN_REVIEWS, Api


@dataclass(frozen=True)
class User:
    """A user or a service account, as the API server knows it."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: Mapping[str, tuple[str, ...]]
    """What an authenticator adds, for an authorizer."""


def identify(api: Api, token: str, audience: str) -> User | None:
    """Whose token this is; None if it is no user's, has expired, or was not made for this audience ("": for the API server).

    Raises:
        FedPipeError: the API server does not answer, or the operator may not ask.
    """
    spec = {"token": token} | ({"audiences": [audience]} if audience else {})
    review = api.create(TOKEN_REVIEWS, "", {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec})
    status = (review or {}).get("status") or {}
    # An authenticator that knows nothing of audiences says nothing of ours: its answer is about the API server's own.
    if not status.get("authenticated") or (audience and audience not in (status.get("audiences") or ())):
        return None
    user = status.get("user") or {}
    extra = {name: tuple(values) for name, values in (user.get("extra") or {}).items()}
    return User(user.get("username", ""), user.get("uid", ""), tuple(user.get("groups") or ()), extra)


def may_get_run(api: Api, user: User, namespace: str, name: str) -> bool:
    """Whether this user may `get` the run of this name, whether or not it exists. Raises as `identify` does."""
    attributes = {"verb": "get", "group": RUNS.group, "resource": RUNS.plural, "namespace": namespace, "name": name}
    spec = {
        "user": user.name,
        "uid": user.uid,
        "groups": list(user.groups),
        "extra": {key: list(values) for key, values in user.extra.items()},
        "resourceAttributes": attributes,
    }
    review = api.create(ACCESS_REVIEWS, "", {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
    return ((review or {}).get("status") or {}).get("allowed") is True
