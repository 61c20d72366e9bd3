"""The policies of docs/store-identity.md, which tests give to a store."""

import json
import re
from typing import Any

from crds import ROOT


def minio_policy(namespace: str = "fedpipe") -> dict[str, Any]:
    """What the role of MinIO may do: the policy that names the service account of the operator in this namespace."""
    page = (ROOT / "docs" / "store-identity.md").read_text().replace("serviceaccount:fedpipe:", f"serviceaccount:{namespace}:")
    (policy,) = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if "jwt:sub" in block]
    return dict(policy)
