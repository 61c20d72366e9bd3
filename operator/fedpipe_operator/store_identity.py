"""The operator's own identity for its default store: whose runs it serves, and what the session of one run may do. Pure.

A run's author chooses what its spec names, so the identity signs for nothing but the administrator's store, and there for each run by a
session of its own, which a policy limits to the run's folder (docs/decisions/workload-identity.md).
"""

import json
import re
from typing import Annotated, Any, Final

from pydantic import Field

from fedpipe_operator.api import FineTuneSpec, StoreSpec
from fedpipe_operator.api.meta import ApiModel
from fedpipe_operator.store_policy import BUCKET_SCHEME, lies_in

ROLE_PATTERN: Final = r"^arn:[a-z-]+:iam::[A-Za-z0-9_-]*:role/[A-Za-z0-9+=,.@_/-]+$"
ENDPOINT_PATTERN: Final = r"^$|^https?://[^/\s]+$"
MODELS_PATTERN: Final = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"
"""BUCKET or BUCKET/FOLDER. Without the characters that a policy reads as wildcards or variables."""
AUDIENCE: Final = "sts.amazonaws.com"
_ACCOUNT: Final = re.compile(r"[0-9]{12}")
_READ: Final = ("s3:GetObject",)
_WRITE: Final = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts")
_KEYS: Final = ("kms:Decrypt", "kms:GenerateDataKey")
"""For a bucket with SSE-KMS. Which keys, says the role's own policy; S3 alone uses them, for the object that it reads or writes."""
_AWS: Final = "aws"

Plain = dict[str, Any]


class StoreIdentity(ApiModel):
    """The role that the operator assumes with its service account's token, and for how long."""

    role_arn: Annotated[str, Field(pattern=f"^$|{ROLE_PATTERN}", max_length=2048)] = ""
    """Empty: the operator has no identity for a store."""
    sts_endpoint: Annotated[str, Field(pattern=ENDPOINT_PATTERN, max_length=1024)] = ""
    """Empty: the store's endpoint, as MinIO has it; for a store without one, that of AWS in the store's region."""
    audience: Annotated[str, Field(min_length=1, max_length=253)] = AUDIENCE
    """For whom the token is; the chart has the kubelet make it so."""
    session_seconds: Annotated[int, Field(ge=1800, le=43200)] = 3600
    """How long a session lasts, and so, at most, a URL. Another one is made at half of that."""
    models: Annotated[tuple[Annotated[str, Field(pattern=MODELS_PATTERN, max_length=576)], ...], Field(max_length=64)] = ()
    """Folders BUCKET/FOLDER of which every run may read a base model `s3://…`."""

    def problem(self, store: StoreSpec | None) -> str | None:
        """Why this identity cannot be that of the default store; None: it can, or there is no identity."""
        if not self.role_arn:
            return None
        if store is None:
            return "roleArn is set, and there is no default store that it would be for: set defaultStore, or remove roleArn"
        if store.credentials_secret_ref is not None:
            return "roleArn is set, and defaultStore names a credentialsSecretRef as well: remove one of the two"
        runs = f"{store.bucket}/{store.prefix}"
        shared = next((one for one in self.models if lies_in(one, runs) or lies_in(runs, one)), None)
        if shared is not None:
            return f"models: {shared} has objects of runs ({runs.rstrip('/')}), which every run could read: keep models in another folder"
        return None

    def model_problem(self, spec: FineTuneSpec) -> str | None:
        """Why a run may not use its model by this identity; None: it may, or its model is in no bucket."""
        if not spec.model.source.startswith(BUCKET_SCHEME) or self._models_of(spec) is not None:
            return None
        what = f"spec.model.source: the operator's identity reads no model in {spec.model.source}"
        return f"{what}; it reads those in {', '.join(self.models)}" if self.models else f"{what}, nor anywhere else"

    def session_policy(self, spec: FineTuneSpec, bucket: str, folder: str) -> str:
        """What a run's session may do, as the JSON of an IAM policy: in its own folder, and read the model that it names.

        The role's own policy holds as well: a session may do what both allow.
        """
        statements = self._statements(bucket, folder, _WRITE)
        if (models := self._models_of(spec)) is not None:
            of_models, _, below = models.partition("/")
            statements += self._statements(of_models, below, _READ)
        if self._is_of_aws:
            of_s3 = {"StringLike": {"kms:ViaService": "s3.*"}}
            statements.append({"Effect": "Allow", "Action": list(_KEYS), "Resource": "*", "Condition": of_s3})
        return json.dumps({"Version": "2012-10-17", "Statement": statements}, separators=(",", ":"))

    def _models_of(self, spec: FineTuneSpec) -> str | None:
        """The folder of models that the run's model is in."""
        source = spec.model.source
        return next((one for one in self.models if source.startswith(BUCKET_SCHEME) and lies_in(_without_scheme(source), one)), None)

    def _statements(self, bucket: str, folder: str, actions: tuple[str, ...]) -> list[Plain]:
        within, resource = (f"{folder}/*" if folder else "*"), f"arn:{self._partition}:s3:::{bucket}"
        return [
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": resource, "Condition": {"StringLike": {"s3:prefix": within}}},
            {"Effect": "Allow", "Action": list(actions), "Resource": f"{resource}/{within}"},
        ]

    @property
    def _is_of_aws(self) -> bool:
        """Other stores refuse a policy with services that they do not have."""
        return _ACCOUNT.fullmatch(self.role_arn.split(":")[4]) is not None

    @property
    def _partition(self) -> str:
        """Of the buckets: in AWS that of the role (`aws-cn`); other stores name buckets as AWS does, whatever their roles are called."""
        partition = self.role_arn.split(":")[1]
        return partition if partition.startswith(f"{_AWS}-") else _AWS


NO_IDENTITY: Final = StoreIdentity()


def _without_scheme(source: str) -> str:
    return source.removeprefix(BUCKET_SCHEME)
