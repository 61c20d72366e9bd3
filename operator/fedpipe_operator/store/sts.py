"""A key pair for a session of a role: AssumeRoleWithWebIdentity, of AWS or of a store that has it (MinIO, Ceph).

The call is signed by nothing but the token that it carries, and bounded like one of the store (`connections`).
"""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from fedpipe_operator import tracing
from fedpipe_operator.errors import UserError
from fedpipe_operator.store.connections import ANSWER_BYTES, Call, Guard, bind, bounded
from fedpipe_operator.store.s3 import MAKING_CLIENTS, Credentials
from fedpipe_operator.store.s3_errors import refusal_of_identity, translate_s3_errors

_CONFIG: Final = Config(signature_version=UNSIGNED, retries={"mode": "standard"})
_SECONDS: Final = 30.0
"""Until the call is done, with its retries."""


@dataclass(frozen=True)
class Role:
    """A role, and who is asked for a session of it."""

    arn: str
    token_file: Path
    """With a JWT that says who asks; whoever made it replaces it before it expires."""
    endpoint: str | None
    """None: that of AWS in the region."""
    region: str
    guard: Guard | None = None


def assume_role(role: Role, *, session: str, policy: str, seconds: int) -> Credentials:
    """The key pair of a session that ends after `seconds`.

    Args:
        role: which one.
        session: its name, as the store's audit log shows it.
        policy: what it may do at most, in JSON.
        seconds: how long it lasts.

    Raises:
        UserError: `IdentityTokenMissing`, `IdentityRefused`; or what calling an endpoint raises.
    """
    token = _token(role)
    where = f"the role {role.arn} at {role.endpoint or 'AWS'}"
    call = Call(time.monotonic() + _SECONDS, ANSWER_BYTES, role.guard)
    with tracing.span("assume role", role=role.arn), translate_s3_errors(where), bounded(call):
        try:
            answer = _client(role.endpoint, role.region, role.guard).assume_role_with_web_identity(
                RoleArn=role.arn, RoleSessionName=session, WebIdentityToken=token, Policy=policy, DurationSeconds=seconds
            )
        except ClientError as error:
            if (why := refusal_of_identity(error)) is None:
                raise
            what = f"{where} is refused to the operator with its token {role.token_file}: {why}"
            advice = (
                "correct the role, whom it trusts (the operator's service account and the token's audience), or how long its sessions last"
            )
            raise UserError("IdentityRefused", f"{what}; {advice}") from error
    given = answer["Credentials"]
    return Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], given["Expiration"].timestamp())


def _token(role: Role) -> str:
    """The token as it is now."""
    what = f"the operator's token for the role {role.arn}"
    advice = "install the operator with the chart's storeIdentity, which mounts it"
    try:
        token = role.token_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise UserError("IdentityTokenMissing", f"{what} cannot be read from {role.token_file}: {error}; {advice}") from error
    if not token:
        raise UserError("IdentityTokenMissing", f"{what} is missing, since {role.token_file} is empty; {advice}")
    return token


@lru_cache(maxsize=4)
def _client(endpoint: str | None, region: str, guard: Guard | None) -> Any:  # noqa: ANN401 -- boto3 makes the classes of its clients at run time
    """They share their connections, so a client whose connections were checked has no others (`guard`)."""
    del guard
    with MAKING_CLIENTS:
        client = boto3.client("sts", endpoint_url=endpoint, region_name=region, config=_CONFIG)
    bind(client)
    return client
