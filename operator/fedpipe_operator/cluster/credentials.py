"""Where credentials live: each run's store is opened with the Secret that its `spec.store.credentialsSecretRef` names, or not at all.

What the operator's pod could sign with (its environment, its node's or its service account's cloud identity) is never used for a run,
but where the administrator says so for the default store: then each run has a session of its own (`identity`).
The runs' key pairs stay in the operator's pod, in memory and in the environment of its worker processes; a Job that aggregates refers
to the same Secret, or has the session's pair in that of its task (`manifests.jobs`). Trainers get presigned URLs only.
"""

import base64
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from fedpipe_operator.api import SecretReference
from fedpipe_operator.cluster.api import SECRETS, Api
from fedpipe_operator.cluster.identity import Identity
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.manifests.jobs import CREDENTIALS, SESSION_TOKEN
from fedpipe_operator.observer import Observer
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials, Guard, Store
from fedpipe_operator.store.address import BucketAddress, StoreAddress, open_store
from fedpipe_operator.store.connections import addresses_of, port_of
from fedpipe_operator.store.observed import ObservedStore
from fedpipe_operator.store.s3_errors import translate_s3_errors
from fedpipe_operator.store_policy import StorePolicy
from fedpipe_operator.tracking.login import LOGIN, Login, login_in
from fedpipe_operator.tracking.write import Work

ACCESS_KEY, SECRET_KEY = CREDENTIALS
EXPIRATION: Final = "AWS_CREDENTIAL_EXPIRATION"
"""In the Secret, beside a session token: when the pair expires, as `aws configure export-credentials` names and writes it."""
_RENEWED_SECONDS: Final = 900.0
"""So long before a key pair expires, its Secret is read again: by then whoever renews it has done so."""


@dataclass(frozen=True)
class StoreConnection:
    """A run's open store, and what a worker process needs to open it again."""

    store: Store
    address: StoreAddress
    credentials: Credentials
    guard: Guard | None = None
    """Which addresses its server may have."""
    renewed_seconds: float = _RENEWED_SECONDS
    """So long before its key pair expires, the store is opened again with another one."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables in which a worker process finds the key pair."""
        return environment_of(self.credentials)

    def is_valid(self, now: float) -> bool:
        """Whether its key pair need not be replaced yet."""
        return self.credentials.expires_at is None or now < self.credentials.expires_at - self.renewed_seconds

    def is_usable(self, now: float) -> bool:
        """Whether its key pair does not expire soon."""
        return self.credentials.expires_at is None or now < self.credentials.expires_at - _RENEWED_SECONDS


@dataclass
class StoreConnections:
    """Open stores by the run's uid. Thread-safe."""

    api: Api
    policy: StorePolicy
    api_servers: tuple[str, ...]
    """Addresses of the API server, to which no store connects."""
    clock: Callable[[], float] = time.time
    observer: Observer = field(default_factory=Observer)
    identity: Identity | None = None
    _opened: dict[str, StoreConnection] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, run: Run) -> StoreConnection:
        """The run's store.

        Raises:
            UserError: `StoreMissing`, `StoreNotAllowed`; what `credentials_of` and `Identity.session_for` raise; or what the API and the
                store raise.
        """
        uid = run.resource.metadata.uid
        with self._lock:
            known = self._opened.get(uid)
        opened = known if known is not None and known.is_valid(self.clock()) else self._reopen(run, known)
        with self._lock:
            self._opened[uid] = opened
        return opened

    def forget(self, uid: str) -> None:
        """Open it again next time: the run is gone, or its Secret may have changed."""
        with self._lock:
            self._opened.pop(uid, None)

    def _reopen(self, run: Run, known: StoreConnection | None) -> StoreConnection:
        """The run's store with another key pair; a token service that does not answer now blocks no run whose session goes on."""
        try:
            return self._open(run)
        except TransientError:
            if known is None or not known.is_usable(self.clock()):
                raise
            return known

    def located(self, run: Run) -> tuple[BucketAddress, Credentials]:
        """Where the run's store is, and its key pair. Nothing is opened, and nothing kept.

        Raises:
            UserError: as `of` does.
        """
        store, meta = run.store, run.resource.metadata
        if (problem := self.policy.problem(meta.namespace, run.spec)) is not None:
            raise UserError("StoreNotAllowed", f"{problem}; name one of these, or ask the operator's administrator to allow it")
        address = BucketAddress(
            bucket=store.bucket,
            prefix=run.prefix,
            endpoint=store.endpoint,
            trainer_endpoint=store.trainer_endpoint,
            region=store.region,
            api_servers=self.api_servers,
        )
        if store.trainer_endpoint is not None and address.guard is not None:
            host = urlsplit(store.trainer_endpoint).hostname or ""
            with translate_s3_errors(f"store.trainerEndpoint {store.trainer_endpoint}"):
                address.guard.check(host, port_of(store.trainer_endpoint), addresses_of(host))
        return address, self._credentials(run, run.prefix)

    def tracking(self, run: Run) -> Work:
        """What it takes to write the run's trackers. Nothing is kept.

        Raises:
            UserError: `TrackerNotAllowed`; what `login_of` raises; or as `of` does.
        """
        meta, mlflow = run.resource.metadata, run.spec.tracking.mlflow
        if mlflow is not None and (problem := self.policy.tracker_problem(meta.namespace, mlflow.tracking_uri)) is not None:
            raise UserError("TrackerNotAllowed", f"{problem}; name one of these, or ask the operator's administrator to allow it")
        login = login_of(mlflow.credentials_secret_ref if mlflow else None, meta.namespace, self.api)
        address, credentials = self.located(run)
        store = ObservedStore(open_store(address, credentials), self.observer)
        return Work(run, store, address.url, Guard(self.api_servers), login)

    def _open(self, run: Run) -> StoreConnection:
        address, credentials = self.located(run)
        opened = ObservedStore(open_store(address, credentials), self.observer)
        identity = self._identity_of(run)
        renewed = _RENEWED_SECONDS if identity is None else identity.renewed_seconds
        return StoreConnection(opened, address, credentials, address.guard, renewed)

    def _credentials(self, run: Run, folder: str) -> Credentials:
        """The key pair for the run's folder of the bucket."""
        identity = self._identity_of(run)
        if identity is not None:
            return identity.session_for(run, folder)
        return credentials_of(run.store.credentials_secret_ref, run.resource.metadata.namespace, self.api)

    def _identity_of(self, run: Run) -> Identity | None:
        """The operator's identity if the run's store is the one that it is for."""
        return self.identity if self.identity is not None and self.identity.is_for(run.store) else None


def environment_of(credentials: Credentials) -> dict[str, str]:
    """The variables in which a worker process finds this key pair."""
    token = {SESSION_TOKEN: credentials.session_token} if credentials.session_token else {}
    return {ACCESS_KEY: credentials.access_key, SECRET_KEY: credentials.secret_key} | token


def credentials_of(reference: SecretReference | None, namespace: str, api: Api) -> Credentials:
    """The key pair in the Secret of this namespace that a run's store names.

    Raises:
        UserError: `CredentialsMissing`, `SecretMissing`, `SecretIncomplete`, `SecretInvalid`; or what the API raises.
    """
    if reference is None:
        what = "spec.store.credentialsSecretRef is not set, and the operator signs nothing in a run's store with an identity of its own"
        advice = f"name a Secret of the namespace {namespace} with {ACCESS_KEY} and {SECRET_KEY} in a new run"
        raise UserError("CredentialsMissing", f"{what}: {advice}")
    secret = api.get(SECRETS, namespace, reference.name)
    if secret is None:
        raise UserError("SecretMissing", f"spec.store.credentialsSecretRef: there is no Secret {namespace}/{reference.name}: create it")
    data = secret.get("data") or {}
    missing = [name for name in (ACCESS_KEY, SECRET_KEY) if not data.get(name)]
    if missing:
        raise UserError("SecretIncomplete", f"the Secret {namespace}/{reference.name} has no {' and no '.join(missing)}: add it")
    texts = {name: base64.b64decode(value).decode() for name, value in data.items() if name in (*CREDENTIALS, SESSION_TOKEN, EXPIRATION)}
    expiration = texts.get(EXPIRATION, "")
    if expiration and _unix(expiration) is None:
        found = f"{EXPIRATION} of the Secret {namespace}/{reference.name} is no time with its zone"
        raise UserError("SecretInvalid", f"{found}: write it as 2026-01-31T12:00:00Z")
    return Credentials(texts[ACCESS_KEY], texts[SECRET_KEY], texts.get(SESSION_TOKEN) or None, _unix(expiration))


def login_of(reference: SecretReference | None, namespace: str, api: Api) -> Login:
    """What the Secret of this namespace that a run's tracker names has for it; without one, nothing.

    Raises:
        UserError: `SecretMissing`, `SecretIncomplete`, `SecretInvalid`; or what the API raises.
    """
    if reference is None:
        return Login()
    where = f"{namespace}/{reference.name}"
    secret = api.get(SECRETS, namespace, reference.name)
    if secret is None:
        what = f"spec.tracking.mlflow.credentialsSecretRef: there is no Secret {where}"
        raise UserError("SecretMissing", f"{what}: create it")
    try:
        found = {name: base64.b64decode(value).decode("ascii") for name, value in (secret.get("data") or {}).items() if name in LOGIN}
    except ValueError:
        raise UserError(
            "SecretInvalid", f"the Secret {where} has a name, a password or a token that is no ASCII text: correct it"
        ) from None
    return login_in(found, f"the Secret {where}")


def _unix(text: str) -> float | None:
    """The time as Unix seconds; None if it is none, or has no zone."""
    try:
        time_ = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return None if time_.tzinfo is None else time_.timestamp()
