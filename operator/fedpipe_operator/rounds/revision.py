"""The immutable fields of a run: its rounds depend on them.

The CRD's CEL rules refuse such a change already. `require_unchanged` is for clusters without them: with an old or a changed CRD.
On one machine, `local.run_folder` applies the same rule to the YAML of a run that is resumed.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.api.aggregation import AggregationSpec
from fedpipe_operator.api.finetune import FineTuneSpec
from fedpipe_operator.errors import UserError

IMMUTABLE: Final = ("model", "task", "store", "planning", "aggregation.method", "continueFrom")
"""Fields of the spec; all others may change."""
IMMUTABLE_TEXT: Final = ", ".join(f"spec.{field}" for field in IMMUTABLE)
"""As messages name them."""


def revision_of(spec: FineTuneSpec) -> str:
    """A short hash of the immutable fields. Defaults are left out, so that a new field of a later version does not change it."""
    return _hash_of(spec, {"model": True, "task": True, "store": True, "planning": True, "aggregation": {"method"}, "continue_from": True})


def learning_revision_of(spec: FineTuneSpec) -> str:
    """A short hash of the immutable fields that say what a run learns and how; the others say where its results are."""
    method = AggregationSpec(method=spec.aggregation.method)  # without it, the hash would depend on whether other fields are the default
    return _hash_of(spec.model_copy(update={"aggregation": method}), {"model": True, "task": True, "planning": True, "aggregation": True})


def _hash_of(spec: FineTuneSpec, fields: Mapping[str, bool | set[str]]) -> str:
    dump = spec.model_dump_json(include=fields, exclude_defaults=True)
    task = spec.task.type  # always the default of its class, so the dump leaves it out
    return hashlib.sha256(f"{task} {dump}".encode()).hexdigest()[:16]


def is_revision_of(revision: str, spec: FineTuneSpec) -> bool:
    """Whether a run of this revision may continue with `spec`: no immutable field has changed since."""
    # With the default method, the hash has an empty `aggregation` if another of its fields is not the default, else none: both are right.
    method = spec.aggregation.method
    either = (AggregationSpec(method=method), AggregationSpec(method=method, max_norm=1.0))
    return revision in {revision_of(spec.model_copy(update={"aggregation": one})) for one in either}


def require_unchanged(resource: FederatedFineTune) -> None:
    """Refuse a run whose immutable fields have changed since it began.

    Raises:
        UserError: `SpecChanged`.
    """
    revision = resource.status.revision
    if revision and not is_revision_of(revision, resource.spec):
        raise UserError("SpecChanged", f"one of {IMMUTABLE_TEXT} has changed since the run began: restore it, or create another run")


def require_continued(spec: FineTuneSpec, revision: str | None) -> None:
    """Refuse a run that is to continue in the folder of an earlier one, if there is none, or if that one learned something else.

    Args:
        spec: of the run.
        revision: in the plan of round 1 in the folder; empty, the plan does not say; None, there is no plan.

    Raises:
        UserError: `NothingToContinue`, `SpecChanged`.
    """
    uid = spec.continue_from
    if uid is None:
        return
    if revision is None:
        advice = "name the UID of an earlier object of this name and namespace that planned a round, or create the run without the field"
        raise UserError("NothingToContinue", f"spec.continueFrom: the store has no rounds of {uid}: {advice}")
    if revision and revision != learning_revision_of(spec):
        fields = "spec.model, spec.task, spec.planning, spec.aggregation.method"
        raise UserError(
            "SpecChanged",
            f"one of {fields} is another than in {uid}, which the run is to continue (spec.continueFrom): write it as it was there, "
            "or create the run without spec.continueFrom",
        )
