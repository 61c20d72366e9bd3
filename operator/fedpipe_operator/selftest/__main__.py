"""`python -m fedpipe_operator.selftest NAMESPACE/DEPLOYMENT`: one line for each check; the exit status is 1 if one fails."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Final

from fedpipe_operator.certificates import certificates_problem
from fedpipe_operator.cluster.api import in_cluster
from fedpipe_operator.cluster.identity import TOKEN_FILE, Identity
from fedpipe_operator.errors import FedPipeError, UserError
from fedpipe_operator.selftest.checks import crds_are_served, operator_is_ready, store_works, toy_site_is_planned
from fedpipe_operator.selftest.toy_site import SPEC
from fedpipe_operator.store import Credentials
from fedpipe_operator.store.address import BucketAddress, credentials_for, open_store
from fedpipe_operator.store.addresses import api_server_addresses
from fedpipe_operator.store.connections import addresses_of
from fedpipe_operator.store_identity import StoreIdentity

STORE_VARIABLE: Final = "FEDPIPE_TEST_STORE"
"""JSON: bucket, endpoint, region, prefix. Without a bucket, the store is left out."""
SECRET_VARIABLE: Final = "FEDPIPE_TEST_SECRET"  # noqa: S105 -- a variable's name
"""The name of the Secret that the key pair in the environment is from."""
IDENTITY_VARIABLE: Final = "FEDPIPE_TEST_IDENTITY"
"""JSON: the chart's storeIdentity, if the store is opened by the operator's role and not by a key pair."""
_SESSION: Final = "fedpipe-helm-test"
"""As the store's audit log shows it."""

Check = Callable[[], str]


def main(arguments: Sequence[str]) -> int:
    """Run every check, whatever the others find; the exit status."""
    if len(arguments) != 1 or "/" not in arguments[0]:
        sys.stderr.write("usage: python -m fedpipe_operator.selftest NAMESPACE/DEPLOYMENT\n")
        return 2
    namespace, _, deployment = arguments[0].partition("/")
    api = cache(in_cluster)
    checks: dict[str, Check] = {
        "crds": lambda: crds_are_served(api()),
        "operator": lambda: operator_is_ready(api(), namespace, deployment, clock=time.monotonic, sleep=time.sleep),
        "certificates": partial(certificates_are_read, os.environ),
        "plan": toy_site_is_planned,
    }
    if (address := store_address(os.environ)) is not None:
        checks["store"] = partial(store_is_opened_and_works, address, os.environ)
    failed = list(failures(checks, sys.stdout.write))
    if "store" not in checks:
        sys.stdout.write("left out  store: set the value test.store to a bucket in which it may write\n")
    return 1 if failed else 0


def failures(checks: Mapping[str, Check], write: Callable[[str], object]) -> Iterator[str]:
    """Run the checks and write a line about each; the names of those that failed."""
    for name, check in checks.items():
        try:
            write(f"ok        {name}: {check()}\n")
        except (FedPipeError, OSError, ValueError, ArithmeticError) as error:
            write(f"FAILED    {name}: {' '.join(str(error).split())}\n")
            yield name


def store_address(environ: Mapping[str, str]) -> BucketAddress | None:
    """The store that the chart's values name; None: none.

    Raises:
        ValueError: the variable is not what the chart writes.
    """
    given = {name: value for name, value in json.loads(environ.get(STORE_VARIABLE) or "{}").items() if value}
    if not given.get("bucket"):
        return None
    return BucketAddress.model_validate({"prefix": ""} | given | {"api_servers": api_server_addresses(environ, addresses_of)})


def store_is_opened_and_works(address: BucketAddress, environ: Mapping[str, str], token_file: Path = TOKEN_FILE) -> str:
    """Whether the store at this address works, by the operator's role where it has one for it, else by a key pair.

    Raises:
        UserError: what `session_of`, `key_pair_of` or `store_works` raises.
    """
    identity = identity_of(environ)
    if identity is None:
        return store_works(open_store(address, key_pair_of(address, environ)))
    said = store_works(open_store(address, session_of(address, identity, token_file)))
    return f"{identity.role_arn} gives a session to the operator's service account; {said}"


def identity_of(environ: Mapping[str, str]) -> StoreIdentity | None:
    """The operator's role for the store; None: it is opened by a key pair.

    Raises:
        ValueError: the variable is not what the chart writes.
    """
    given = environ.get(IDENTITY_VARIABLE)
    return StoreIdentity.model_validate_json(given) if given else None


def session_of(address: BucketAddress, identity: StoreIdentity, token_file: Path) -> Credentials:
    """A session as long as that of a run, which opens the folder of the test and nothing else: a run's would open the run's.

    Raises:
        UserError: `IdentityTokenMissing`, `IdentityRefused`; or what calling an endpoint raises.
    """
    policy = identity.session_policy(SPEC, address.bucket, address.prefix)  # whose model is in no bucket
    return Identity(identity, None, address.guard, token_file).session(_SESSION, policy, endpoint=address.endpoint, region=address.region)


def key_pair_of(address: BucketAddress, environ: Mapping[str, str]) -> Credentials | None:
    """The key pair of the store's Secret.

    Raises:
        UserError: `CredentialsMissing`.
    """
    try:
        return credentials_for(address, environ)
    except UserError as error:
        secret = environ.get(SECRET_VARIABLE)
        where = f"the Secret {secret} of this namespace has not both" if secret else "no Secret is named that has both"
        advice = "create it, or correct its name in credentialsSecretRef"
        raise UserError("CredentialsMissing", f"{where} AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: {advice}") from error


def certificates_are_read(environ: Mapping[str, str]) -> str:
    """Whether the certificates that pods are told to trust can be read.

    Raises:
        UserError: `CertificatesUnreadable`.
    """
    if (problem := certificates_problem(environ)) is not None:
        raise UserError("CertificatesUnreadable", problem)
    return "those of the value caBundle can be read" if environ.get("SSL_CERT_FILE") else "those of the image are trusted"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
