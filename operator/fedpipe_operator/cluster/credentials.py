"""Where credentials live: each run's store is opened with the Secret that its `spec.store.credentialsSecretRef` names, or not at all.

What the operator's pod could sign with (its environment, its node's or its service account's cloud identity) is never used for a run.
The runs' key pairs stay in the operator's pod, in memory and in the environment of its worker processes; a Job that aggregates refers
to the same Secret (`manifests.jobs`). Trainers get presigned URLs only.
"""

import base64
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_operator import names
from fedpipe_operator.cluster.api import SECRETS, Api
from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests.jobs import CREDENTIALS
from fedpipe_operator.observer import Observer
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials, Guard, Store
from fedpipe_operator.store.address import BucketAddress, StoreAddress, open_store
from fedpipe_operator.store.observed import ObservedStore
from fedpipe_operator.store_policy import StorePolicy

ACCESS_KEY, SECRET_KEY = CREDENTIALS


@dataclass(frozen=True)
class StoreConnection:
    """A run's open store, and what a worker process needs to open it again."""

    store: Store
    address: StoreAddress
    credentials: Credentials
    guard: Guard | None = None
    """Which addresses its server may have."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables in which a worker process finds the key pair."""
        return {ACCESS_KEY: self.credentials.access_key, SECRET_KEY: self.credentials.secret_key}


@dataclass
class StoreConnections:
    """Open stores by the run's uid. Thread-safe."""

    api: Api
    policy: StorePolicy
    api_servers: tuple[str, ...]
    """Addresses of the API server, to which no store connects."""
    observer: Observer = field(default_factory=Observer)
    _opened: dict[str, StoreConnection] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, run: Run) -> StoreConnection:
        """The run's store.

        Raises:
            UserError: `StoreNotAllowed`, `CredentialsMissing`, `SecretMissing`, `SecretIncomplete`; or what the API and the store raise.
        """
        uid = run.resource.metadata.uid
        with self._lock:
            known = self._opened.get(uid)
        opened = known or self._open(run)
        with self._lock:
            self._opened[uid] = opened
        return opened

    def forget(self, uid: str) -> None:
        """Open it again next time: the run is gone, or its Secret may have changed."""
        with self._lock:
            self._opened.pop(uid, None)

    def _open(self, run: Run) -> StoreConnection:
        spec, meta = run.spec.store, run.resource.metadata
        if (problem := self.policy.problem(meta.namespace, run.spec)) is not None:
            raise UserError("StoreNotAllowed", f"{problem}; name one of these, or ask the operator's administrator to allow it")
        prefix = names.run_prefix(spec.prefix, meta.namespace, meta.name, meta.uid)
        address = BucketAddress(bucket=spec.bucket, prefix=prefix, endpoint=spec.endpoint, region=spec.region, api_servers=self.api_servers)
        credentials = self._credentials(run)
        store = ObservedStore(open_store(address, credentials), self.observer)
        return StoreConnection(store, address, credentials, address.guard)

    def _credentials(self, run: Run) -> Credentials:
        reference, namespace = run.spec.store.credentials_secret_ref, run.resource.metadata.namespace
        if reference is None:
            what = "spec.store.credentialsSecretRef is not set, and the operator signs nothing with an identity of its own"
            advice = f"name a Secret of the namespace {namespace} with {ACCESS_KEY} and {SECRET_KEY} in a new run"
            raise UserError("CredentialsMissing", f"{what}: {advice}")
        secret = self.api.get(SECRETS, namespace, reference.name)
        if secret is None:
            raise UserError("SecretMissing", f"spec.store.credentialsSecretRef: there is no Secret {namespace}/{reference.name}: create it")
        data = secret.get("data") or {}
        missing = [name for name in (ACCESS_KEY, SECRET_KEY) if not data.get(name)]
        if missing:
            raise UserError("SecretIncomplete", f"the Secret {namespace}/{reference.name} has no {' and no '.join(missing)}: add it")
        return Credentials(*(base64.b64decode(data[name]).decode() for name in (ACCESS_KEY, SECRET_KEY)))
