"""The table of the kinds of work: under which key each writes its result, and how it is called. `backend.TaskKind` is the enum."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from fedpipe_operator import names
from fedpipe_operator.backend import Job, TaskKind


class Kind(NamedTuple):
    """One kind of work."""

    result_key: Callable[[Job], str]
    """Of the object that a job of this kind writes last."""
    activity: str
    """What `fedpipe run` displays while a job of this kind is running."""


KINDS: Final[Mapping[TaskKind, Kind]] = {
    TaskKind.PROFILE: Kind(lambda job: names.profile_result(job.site, job.attempt), "profiling"),
    TaskKind.TRAIN: Kind(lambda job: names.update_result(job.round, job.site, job.attempt), "training"),
    TaskKind.PLAN: Kind(lambda job: names.round_plan(job.round), "planning"),
    TaskKind.AGGREGATE: Kind(lambda job: names.round_commit(job.round), "aggregating"),
    TaskKind.EVALUATE: Kind(lambda job: names.evaluation_result(job.round, job.site, job.attempt), "evaluating"),
    TaskKind.DRY_EXPORT: Kind(lambda job: names.dry_export_result(job.attempt), "trying the export"),
    TaskKind.EXPORT: Kind(lambda job: names.export_result(job.attempt), "exporting"),
}
