"""Converts the actions of an export to tasks: its dry run on the untouched base, and the export of the files that this found. Pure."""

import math
from collections.abc import Mapping
from typing import Final

from fedpipe_operator import conversion, names
from fedpipe_operator.admission import AdmittedDryExport
from fedpipe_operator.backend import TaskKind
from fedpipe_operator.reconcile.tasks import TaskContext, TaskInputs, as_planned, global_adapter_of
from fedpipe_operator.rounds import StartDryExport, StartExport
from fedpipe_operator.rounds.export_files import DRY_EXPORT_ROUND, PARTS_FROM_BYTES, large_files
from fedpipe_operator.rounds.observed import CommitSummary, PlanSummary
from fedpipe_operator.rounds.records import STATUS_SITES
from fedpipe_trainer.contract import DryExportTask, ExportTask, FileUpload, Provenance
from fedpipe_trainer.contract.task import ExportFiles

_LEAST_PART_BYTES: Final = 8 << 20
_MOST_PARTS: Final = 1000
"""Of an export in all: so many a store lists at once."""
_URL_BYTES: Final = 600_000
"""Of the URLs of the parts, together: a task is a Secret, which holds a megabyte."""
_BYTES_OF_AN_UPLOAD: Final = 300
"""By which the URL of a part is longer than one that reads the object: its number, and the upload's name."""


def dry_export_task(context: TaskContext, action: StartDryExport, inputs: TaskInputs, *, plan: PlanSummary) -> DryExportTask:
    """The task that tries the export on the untouched base, for adapters of the largest rank that the run may have."""
    context = context.in_stage(TaskKind.DRY_EXPORT, DRY_EXPORT_ROUND)
    rank, export = context.spec.planning.max_rank, context.spec.export
    return DryExportTask(
        run=context.run.ref,
        site="",
        round=DRY_EXPORT_ROUND,
        attempt=action.attempt,
        model=as_planned(inputs.model, plan),
        deadline_seconds=context.stage_seconds,
        **context.outputs(names.dry_export_result(action.attempt)),
        objective=conversion.objective(context.spec.task, plan.labels),
        source=_source(context, inputs),
        ranks=dict.fromkeys(plan.facts.weights if plan.facts else (), max(1, rank)),
        adapter=export.adapter,
        merged=export.merged,
    )


def export_task(  # noqa: PLR0913 -- what an export depends on
    context: TaskContext, action: StartExport, inputs: TaskInputs, *, plan: PlanSummary, commit: CommitSummary, found: AdmittedDryExport
) -> ExportTask:
    """The task that exports a round's global adapter as a PEFT folder and a merged model: the files that the dry export found."""
    context = context.in_stage(TaskKind.EXPORT)
    part_bytes = _part_bytes(context, found)
    return ExportTask(
        run=context.run.ref,
        site="",
        round=action.round,
        attempt=action.attempt,
        model=as_planned(inputs.model, plan),
        deadline_seconds=context.stage_seconds,
        **context.outputs(names.export_result(action.attempt)),
        objective=conversion.objective(context.spec.task, plan.labels),
        source=_source(context, inputs),
        global_adapter=global_adapter_of(context, commit.adapter),
        adapter_files=_uploads(context, names.EXPORT_ADAPTER, found.adapter if context.spec.export.adapter else (), part_bytes),
        merged_files=_uploads(context, names.EXPORT_MERGED, found.merged if context.spec.export.merged else (), part_bytes),
        provenance=_provenance(context, action.round),
    )


def _part_bytes(context: TaskContext, found: AdmittedDryExport) -> int:
    """Of a part: as small as the number of their URLs allows, since after a cut connection a part is sent again."""
    length = len(context.read(names.EXPORT_MERGED)) + _BYTES_OF_AN_UPLOAD
    parts = max(1, min(_MOST_PARTS, _URL_BYTES // length) - len(large_files(found)))
    total = sum(one.size for one in (*found.adapter, *found.merged) if one.size >= PARTS_FROM_BYTES)
    return max(_LEAST_PART_BYTES, math.ceil(total / parts))


def _uploads(context: TaskContext, folder: str, files: ExportFiles, part_bytes: int) -> Mapping[str, FileUpload]:
    return {one.name: context.write_file(f"{folder}/{one.name}", one.size, part_bytes) for one in files}


def _source(context: TaskContext, inputs: TaskInputs) -> str:
    """The base as the run names it: where its folder is in a pod says nothing to others. A folder of this machine keeps its path."""
    source = context.spec.model.source
    return inputs.model.source if source.startswith("file:") else source


def _provenance(context: TaskContext, round_: int) -> Provenance:
    """What the model card says: names of sites, figures and plans, none of which is of anybody's data."""
    observed = context.observed
    sites = {one.site for commit in observed.commits.values() for one in commit.contributions if one.share > 0}
    plans = observed.plan.plans if observed.plan else {}
    exported, base = observed.evaluations.get(round_), observed.evaluations.get(0)
    return Provenance(
        sites=tuple(sorted(sites)[:STATUS_SITES]),
        rounds=round_,
        metrics=dict(exported.metrics) if exported else {},
        base_metrics=dict(base.metrics) if base else {},
        plan=tuple(
            f"{site}: {plan.steps} steps of {plan.batch_size} samples, ranks up to {max(plan.ranks.values(), default=0)}, {plan.bits} bits"
            for site, plan in sorted(plans.items())[:STATUS_SITES]
        ),
    )
