"""The policies of docs/store-identity.md, which tests give to a store."""

import json
import re
from typing import Any

from crds import ROOT


def minio_policy() -> dict[str, Any]:
    """What the role of MinIO may do: the policy that names the operator's service account."""
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "store-identity.md").read_text(), re.DOTALL)
    (policy,) = [json.loads(block) for block in blocks if "jwt:sub" in block]
    return dict(policy)
