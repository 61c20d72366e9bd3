"""The table of the kinds of work: what each writes last, under which key, and how it is called. `backend.TaskKind` is the enum."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from fedpipe_operator import names
from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan
from fedpipe_trainer.contract import EvaluateResult, ExportResult, ProfileResult, TrainResult, Wire


class Kind(NamedTuple):
    """One kind of work."""

    result: type[Wire]
    """The object that a job of this kind writes last."""
    result_key: Callable[[Job], str]
    activity: str
    """What `fedpipe run` displays while a job of this kind is running."""


KINDS: Final[Mapping[TaskKind, Kind]] = {
    TaskKind.PROFILE: Kind(ProfileResult, lambda job: names.profile_result(job.site, job.attempt), "profiling"),
    TaskKind.TRAIN: Kind(TrainResult, lambda job: names.update_result(job.round, job.site, job.attempt), "training"),
    TaskKind.PLAN: Kind(RoundPlan, lambda job: names.round_plan(job.round), "planning"),
    TaskKind.AGGREGATE: Kind(RoundCommit, lambda job: names.round_commit(job.round), "aggregating"),
    TaskKind.EVALUATE: Kind(EvaluateResult, lambda job: names.evaluation_result(job.round, job.site, job.attempt), "evaluating"),
    TaskKind.EXPORT: Kind(ExportResult, lambda job: names.export_result(job.attempt), "exporting"),
}
