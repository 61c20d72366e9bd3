"""The immutable fields of a run: its rounds depend on them.

The CRD's CEL rules refuse such a change already. This check is for clusters without them: with an old or a changed CRD.
"""

import hashlib
from typing import Final

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.api.finetune import FineTuneSpec
from fedpipe_operator.errors import UserError

IMMUTABLE: Final = ("model", "task", "store", "planning", "aggregation.method")
"""Fields of the spec; all others may change."""


def revision_of(spec: FineTuneSpec) -> str:
    """A short hash of the immutable fields. Defaults are left out, so that a new field of a later version does not change it."""
    fields = spec.model_dump_json(
        include={"model": True, "task": True, "store": True, "planning": True, "aggregation": {"method"}}, exclude_defaults=True
    )
    task = spec.task.type  # always the default of its class, so the dump leaves it out
    return hashlib.sha256(f"{task} {fields}".encode()).hexdigest()[:16]


def require_unchanged(resource: FederatedFineTune) -> None:
    """Refuse a run whose immutable fields have changed since it began.

    Raises:
        UserError: `SpecChanged`.
    """
    if resource.status.revision not in ("", revision_of(resource.spec)):
        fields = ", ".join(f"spec.{field}" for field in IMMUTABLE)
        raise UserError("SpecChanged", f"one of {fields} has changed since the run began: restore it, or create another run")
