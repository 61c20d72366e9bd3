"""What a run has in its store, by digest: two runs of the same plans must have the same, bit for bit."""

import hashlib

from fleet_namespace import FleetNamespace

from fedpipe_operator import names
from fedpipe_operator.rounds.records import RoundCommit
from fedpipe_operator.store import S3Store
from fedpipe_operator.store.objects import required_object


def sha256_of(store: S3Store, key: str) -> str:
    """The digest of an object that must exist."""
    data = store.read(key)
    assert data is not None, key
    return hashlib.sha256(data).hexdigest()


def adapters(namespace: FleetNamespace) -> dict[int, str]:
    """The SHA-256 of each round's global adapter, computed from the bytes in the store."""
    run = namespace.get_run()
    store = namespace.store_of(run)
    found = {}
    for round_ in range(1, run["spec"]["rounds"]["count"] + 1):
        result = required_object(store, names.round_commit(round_), RoundCommit)
        found[round_] = sha256_of(store, names.global_adapter(round_, result.adapter.sha256))
        assert found[round_] == result.adapter.sha256
    return found
