"""The operator's identity for its default store, as its pod has it: a token of its service account, for which a role gives sessions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedpipe_operator.api import StoreSpec
from fedpipe_operator.errors import UserError
from fedpipe_operator.rounds import Run
from fedpipe_operator.store import Credentials, Guard
from fedpipe_operator.store.sts import Role, assume_role
from fedpipe_operator.store_identity import StoreIdentity

TOKEN_FILE: Final = Path("/var/run/secrets/fedpipe.io/store/token")
"""Where the chart mounts the token, which the kubelet renews long before it expires."""
_LEAST_REMAINING: Final = 0.5
"""The part of a session after which another one is made, so that a URL which is asked for as long is valid for half a session at least."""


@dataclass(frozen=True)
class Identity:
    """The identity, and the store that it is for."""

    settings: StoreIdentity
    default_store: StoreSpec | None
    guard: Guard | None
    """Which addresses the token may be sent to; None: any, as on one machine."""
    token_file: Path = TOKEN_FILE

    def is_for(self, store: StoreSpec) -> bool:
        """Whether this is the administrator's store, and the identity opens it; a run that writes the same into its spec may as well."""
        return bool(self.settings.role_arn) and store.credentials_secret_ref is None and store == self.default_store

    @property
    def renewed_seconds(self) -> float:
        """So long before a session ends, there is another one."""
        return self.settings.session_seconds * _LEAST_REMAINING

    def session_for(self, run: Run, folder: str) -> Credentials:
        """The key pair of a session for this run, which opens its folder of the bucket and nothing else of it.

        Raises:
            UserError: `StoreNotAllowed`, a model that is in none of the administrator's folders; `IdentityTokenMissing`, `IdentityRefused`;
                or what calling an endpoint raises.
        """
        if (problem := self.settings.model_problem(run.spec)) is not None:
            advice = "name another model, or a store and a key pair of your own (spec.store), or ask the operator's administrator"
            raise UserError("StoreNotAllowed", f"{problem}; {advice}")
        store = run.store
        policy = self.settings.session_policy(run.spec, store.bucket, folder)
        return self.session(f"fedpipe-{run.resource.metadata.uid}", policy, endpoint=store.endpoint, region=store.region)

    def session(self, name: str, policy: str, *, endpoint: str | None, region: str) -> Credentials:
        """The key pair of a session that may do what this policy says, for the store at this endpoint (None: AWS, in the region).

        Raises:
            UserError: `IdentityTokenMissing`, `IdentityRefused`; or what calling an endpoint raises.
        """
        role = Role(self.settings.role_arn, self.token_file, self.settings.sts_endpoint or endpoint, region, self.guard)
        return assume_role(role, session=name, policy=policy, seconds=self.settings.session_seconds)
