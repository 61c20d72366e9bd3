"""The files of an export, as its dry run on the untouched base found them. Pure."""

from collections.abc import Mapping
from typing import Final

from fedpipe_operator import names
from fedpipe_operator.admission import AdmittedDryExport
from fedpipe_operator.api import FineTuneSpec
from fedpipe_trainer.contract import Outcome

DRY_EXPORT_ROUND: Final = 1
"""A dry export belongs to the round before which it is made: the Secrets of a round's tasks are deleted when the next one is planned."""
PARTS_FROM_BYTES: Final = 64 << 20
"""A smaller file is written at once. S3 takes at most 5 GB so."""


def covers_export(spec: FineTuneSpec, found: AdmittedDryExport) -> bool:
    """Whether a dry export tried all that the spec asks for: `spec.export` may have been edited since. A failed one counts: it says why."""
    is_tried = (bool(found.adapter) or not spec.export.adapter) and (bool(found.merged) or not spec.export.merged)
    return found.outcome is not Outcome.COMPLETED or is_tried


def covering_export(spec: FineTuneSpec, found: Mapping[int, AdmittedDryExport]) -> AdmittedDryExport:
    """The newest dry export that succeeded and tried all that the spec asks for; an export begins only after one."""
    return next(one for _, one in sorted(found.items(), reverse=True) if one.outcome is Outcome.COMPLETED and covers_export(spec, one))


def large_files(found: AdmittedDryExport) -> tuple[str, ...]:
    """The keys of the files that are written in parts."""
    folders = ((names.EXPORT_ADAPTER, found.adapter), (names.EXPORT_MERGED, found.merged))
    return tuple(f"{folder}/{one.name}" for folder, files in folders for one in files if one.size >= PARTS_FROM_BYTES)
