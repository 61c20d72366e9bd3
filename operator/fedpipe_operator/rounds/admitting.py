"""What each result of a run is held to: the task that it answers, and the plan of its round."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar

from fedpipe_operator.admission import (
    MAX_RESULT_BYTES,
    AdmittedDryExport,
    AdmittedEvaluation,
    AdmittedExport,
    AdmittedProfile,
    AdmittedProgress,
    AdmittedUpdate,
    Asked,
    EvaluationBounds,
    RefusalReason,
    Refused,
    RefusedError,
    UpdateBounds,
    admit_dry_export,
    admit_evaluation,
    admit_export,
    admit_profile,
    admit_progress,
    admit_update,
    max_update_bytes,
)
from fedpipe_operator.api import PreferenceTask, SequenceClassificationTask, TaskSpec, longest_sample, measured_metrics
from fedpipe_operator.backend import Job, TaskKind
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_trainer.contract import MAX_PROGRESS_BYTES, RunRef

Admissible = AdmittedProfile | AdmittedUpdate | AdmittedEvaluation | AdmittedDryExport | AdmittedExport | AdmittedProgress


_LOG = logging.getLogger(__name__)
_MOST: Final = MAX_RESULT_BYTES + 1
Value_co = TypeVar("Value_co", bound=Admissible, covariant=True)


class Admit(NamedTuple, Generic[Value_co]):
    """How one result, or the progress towards it, is admitted."""

    at_most: int
    """Bytes of it that are read: one more than it may have."""
    value: Callable[[bytes], Value_co]
    """From these bytes. Raises `RefusedError`."""

    def result(self, data: bytes) -> Value_co | Refused:
        """The value, or why there is none. The one place where a fault in what a site sent ends, as that site's refusal."""
        try:
            return self.value(data)
        except RefusedError as error:
            return error.refused
        except Exception as error:  # noqa: BLE001 -- a site controls every byte: no fault that it finds may cost others anything
            _LOG.exception("a result cannot be admitted")
            return Refused(RefusalReason.UNREADABLE, f"its result cannot be admitted: {type(error).__name__}; see the log")


def update_admission(asked: Asked, plan: RoundPlan | None) -> Admit[AdmittedUpdate]:
    """For the result of a training by the plan of its round; without one it is refused."""
    bounds = UpdateBounds(None, "")
    if plan is not None:
        bounds = UpdateBounds(plan.plans.get(asked.site), plan.fingerprint, **_rows(plan.samples, asked.site))
    return Admit(max_update_bytes(bounds.plan) + 1, partial(admit_update, asked=asked, bounds=bounds))


def progress_admission(run: RunRef, job: Job) -> Admit[AdmittedProgress]:
    """For what the trainer of this job writes while it works."""
    round_ = None if job.kind in {TaskKind.EXPORT, TaskKind.DRY_EXPORT} else job.round
    asked = Asked(run, job.site, round_, job.attempt, of=f"{job.kind} progress")
    return Admit(MAX_PROGRESS_BYTES + 1, partial(admit_progress, asked=asked))


def _rows(samples: Mapping[str, int], site: str) -> dict[str, int]:
    """The bound on the rows that a site drops; none where an earlier version of the operator planned the round."""
    return {"rows": samples[site]} if site in samples else {}


@dataclass(frozen=True)
class Admission:
    """How each result of a run is admitted."""

    run: RunRef
    task: TaskSpec
    plan: RoundPlan | None
    """Of the round whose updates are admitted."""

    def of_profile(self, site: str, attempt: int) -> Admit[AdmittedProfile]:
        """For the profile of this attempt."""
        return Admit(_MOST, partial(admit_profile, asked=Asked(self.run, site, 0, attempt)))

    def of_update(self, round_: int, site: str, attempt: int) -> Admit[AdmittedUpdate]:
        """For the result of this training."""
        return update_admission(Asked(self.run, site, round_, attempt), self.plan if self.plan and self.plan.round == round_ else None)

    def of_evaluation(self, round_: int, site: str, attempt: int) -> Admit[AdmittedEvaluation]:
        """For a site's evaluation of this round's adapter."""
        rows = _rows(self.plan.validation_samples if self.plan else {}, site)
        base = self.plan.fingerprint if self.plan else None
        has_one_target = isinstance(self.task, SequenceClassificationTask | PreferenceTask)
        measured = frozenset(measured_metrics(self.task)) - {"loss"}
        bounds = EvaluationBounds(has_one_target, measured, longest_sample(self.task), **rows, fingerprint=base)
        return Admit(_MOST, partial(admit_evaluation, asked=Asked(self.run, site, round_, attempt), bounds=bounds))

    def of_export(self, attempt: int) -> Admit[AdmittedExport]:
        """For the result of this export."""
        return Admit(_MOST, partial(admit_export, asked=Asked(self.run, "", None, attempt)))

    def of_dry_export(self, attempt: int) -> Admit[AdmittedDryExport]:
        """For what this dry export found."""
        return Admit(_MOST, partial(admit_dry_export, asked=Asked(self.run, "", None, attempt)))

    def of_job(self, job: Job) -> Admit[Admissible]:
        """For the result that this trainer's job writes last."""
        match job.kind:
            case TaskKind.PROFILE:
                return self.of_profile(job.site, job.attempt)
            case TaskKind.TRAIN:
                return self.of_update(job.round, job.site, job.attempt)
            case TaskKind.EVALUATE:
                return self.of_evaluation(job.round, job.site, job.attempt)
            case TaskKind.DRY_EXPORT:
                return self.of_dry_export(job.attempt)
            case _:
                return self.of_export(job.attempt)
