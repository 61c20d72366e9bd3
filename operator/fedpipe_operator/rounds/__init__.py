"""The life of a run. Pure: `decide` says the next step from what was observed; `records` is what a run writes into its store."""

from fedpipe_operator.rounds.actions import (
    AbortUploads,
    Action,
    CommitEvaluation,
    CommitExpiredProfiles,
    CommitPlan,
    Decision,
    Discard,
    Event,
    StartAggregation,
    StartDryExport,
    StartEvaluation,
    StartExport,
    StartPlanning,
    StartProfile,
    StartTraining,
)
from fedpipe_operator.rounds.decide import decide, is_over
from fedpipe_operator.rounds.observed import Observed, Run, job_of
from fedpipe_operator.rounds.policies import exported_round

__all__ = [
    "AbortUploads",
    "Action",
    "CommitEvaluation",
    "CommitExpiredProfiles",
    "CommitPlan",
    "Decision",
    "Discard",
    "Event",
    "Observed",
    "Run",
    "StartAggregation",
    "StartDryExport",
    "StartEvaluation",
    "StartExport",
    "StartPlanning",
    "StartProfile",
    "StartTraining",
    "decide",
    "exported_round",
    "is_over",
    "job_of",
]
