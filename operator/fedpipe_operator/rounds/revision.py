"""What may not change while a run is under way, since its rounds rest on it.

The CRD's rules refuse such a change already. This holds where they are not there: an old CRD, or one that was changed.
"""

import hashlib
from typing import Final

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.api.finetune import FineTuneSpec
from fedpipe_operator.errors import UserError

FIXED: Final = ("model", "task", "store", "planning", "aggregation.method")
"""Fields of the spec; all others may change."""


def revision_of(spec: FineTuneSpec) -> str:
    """A short hash of the fixed fields. Defaults are left out, so that a new field of a later version changes none."""
    fixed = spec.model_dump_json(
        include={"model": True, "task": True, "store": True, "planning": True, "aggregation": {"method"}}, exclude_defaults=True
    )
    task = spec.task.type  # which is a default of its class, whichever it is
    return hashlib.sha256(f"{task} {fixed}".encode()).hexdigest()[:16]


def require_unchanged(resource: FederatedFineTune) -> None:
    """Refuse a run whose fixed fields are others than those it began with.

    Raises:
        UserError: `SpecChanged`.
    """
    if resource.status.revision not in ("", revision_of(resource.spec)):
        fields = ", ".join(f"spec.{field}" for field in FIXED)
        raise UserError("SpecChanged", f"one of {fields} is another than when the run began: set it back, or create another run")
