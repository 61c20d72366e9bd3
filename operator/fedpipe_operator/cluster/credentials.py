"""Where credentials live: each run's store is opened with the Secret that its `spec.store.credentialsSecretRef` names.

They stay in the operator's pod, in memory and in the environment of its worker processes; a Job that aggregates refers to the same
Secret (`manifests.jobs`). Trainers get presigned URLs only.
"""

import base64
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_operator import names
from fedpipe_operator.cluster.api import SECRETS, Api
from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests.jobs import CREDENTIALS
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials, Store
from fedpipe_operator.store.address import BucketAddress, StoreAddress, open_store

ACCESS_KEY, SECRET_KEY = CREDENTIALS


@dataclass(frozen=True)
class StoreConnection:
    """A run's open store, and what a worker process needs to open it again."""

    store: Store
    address: StoreAddress
    credentials: Credentials | None

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables in which a worker process finds the key pair."""
        return {ACCESS_KEY: self.credentials.access_key, SECRET_KEY: self.credentials.secret_key} if self.credentials else {}


@dataclass
class StoreConnections:
    """Open stores by the run's uid. Thread-safe."""

    api: Api
    _opened: dict[str, StoreConnection] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, run: Run) -> StoreConnection:
        """The run's store.

        Raises:
            UserError: `SecretMissing`, `SecretIncomplete`; or what the API and the store raise.
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
        store, meta = run.spec.store, run.resource.metadata
        prefix = names.run_prefix(store.prefix, meta.namespace, meta.name, meta.uid)
        address = BucketAddress(bucket=store.bucket, prefix=prefix, endpoint=store.endpoint, region=store.region)
        credentials = self._credentials(run)
        return StoreConnection(open_store(address, credentials), address, credentials)

    def _credentials(self, run: Run) -> Credentials | None:
        reference, namespace = run.spec.store.credentials_secret_ref, run.resource.metadata.namespace
        if reference is None:
            return None
        secret = self.api.get(SECRETS, namespace, reference.name)
        if secret is None:
            raise UserError("SecretMissing", f"spec.store.credentialsSecretRef: there is no Secret {namespace}/{reference.name}: create it")
        data = secret.get("data") or {}
        missing = [name for name in (ACCESS_KEY, SECRET_KEY) if not data.get(name)]
        if missing:
            raise UserError("SecretIncomplete", f"the Secret {namespace}/{reference.name} has no {' and no '.join(missing)}: add it")
        return Credentials(*(base64.b64decode(data[name]).decode() for name in (ACCESS_KEY, SECRET_KEY)))
