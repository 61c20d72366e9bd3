"""The results of trainers: profile, update, evaluation and export. Each is held to the task that it answers."""

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, NewType

from fedpipe_operator.admission.document import MAX_RESULT_BYTES, MOST_VALUES, parse
from fedpipe_operator.admission.refusal import RefusalReason, RefusedError, require_equal, require_range
from fedpipe_trainer.contract import (
    MAX_PROGRESS_BYTES,
    DryExportResult,
    EvaluateResult,
    ExportFile,
    ExportResult,
    Outcome,
    Plan,
    ProfileResult,
    RunRef,
    TaskProgress,
    TrainResult,
    Wire,
    perplexity_of,
)
from fedpipe_trainer.contract.result import MAX_LOSS
from fedpipe_trainer.contract.task import ADAPTER_FILES, MAX_EXPORT_FILES

AdmittedProfile = NewType("AdmittedProfile", ProfileResult)
AdmittedUpdate = NewType("AdmittedUpdate", TrainResult)
"""Its adapter is not checked yet: see `aggregation.gate`."""
AdmittedEvaluation = NewType("AdmittedEvaluation", EvaluateResult)
AdmittedDryExport = NewType("AdmittedDryExport", DryExportResult)
AdmittedExport = NewType("AdmittedExport", ExportResult)
AdmittedProgress = NewType("AdmittedProgress", TaskProgress)

_SCALE_TOLERANCE: Final = 1e-6
_BYTES_OF_A_WEIGHT: Final = 4096
"""Of a result, at most: its name four times, rank, scale and the shapes of two tensors."""
_BYTES_OF_A_STEP: Final = 32
"""Of a result: the loss."""
_LARGEST_UPDATE: Final = 64 * 2**20
"""Bytes of its result, whatever its plan: who has the key pair of the bucket can write that. One of 4,000 weights, as many as a profile can
have, and a million steps has 50 MiB at most."""
_VALUES_OF_A_WEIGHT: Final = 16
"""Of a result, at most: rank, scale and the shapes of two tensors."""
_UNIT_METRICS: Final = frozenset(
    {"accuracy", "macroF1", "microF1", "rougeL", "slotErrorRate", "exactMatch", "tokenF1", "preferenceAccuracy"}
)
"""From 0 to 1."""
_CORRELATIONS: Final = frozenset({"pearson", "spearman"})
"""From -1 to 1."""
_MOST_BLEU: Final = 100.0
_TOLERANCE: Final = 1e-6
_MOST_SAMPLES: Final = 10**6
"""Of an evaluation: the most that `evaluation.maxSamples` can ask for."""
_MOST_ROWS: Final = 10**12
"""Of a file, where its site's profile is not known."""
_MOST_SHOWN: Final = 20
"""The most that `evaluation.samples` can ask for."""
_VALUES_OF_DRY_EXPORT: Final = 4 * MAX_EXPORT_FILES + MOST_VALUES
"""Of JSON, at most: name and size of each file."""
_MOST_EXPORTED: Final = 250
"""Files of an export: its task, a Secret of a megabyte, has a URL for each, and four for each of 64 MiB and more. Weights are in files of
4 GiB."""
LARGEST_RATE: Final = 1e15
"""Of tokens, bits or their quotients: more than any device has."""
LARGEST_MFU: Final = 10.0
_SHOWN_FIGURES: Final = {"train_loss": MAX_LOSS, "validation_loss": MAX_LOSS, "tokens_per_second": LARGEST_RATE, "mfu": LARGEST_MFU}
"""The most of each."""
_MODEL_FILES: Final = ("config.json",)
"""Of a merged model, at least, beside its weights."""
_VALUES_OF_PROGRESS: Final = 64
"""Of JSON, at most."""


@dataclass(frozen=True)
class Asked:
    """The task that a result answers. An export has no site."""

    run: RunRef
    site: str
    round: int | None
    """None for an export: an edit of the target may have changed which round that is."""
    attempt: int
    of: str = "result"
    """What answers it, for messages."""

    @property
    def what(self) -> str:
        """For messages."""
        return f"{self.of} of site {self.site}" if self.site else self.of


@dataclass(frozen=True)
class UpdateBounds:
    """What an update must match."""

    plan: Plan | None
    """The site's plan in this round; None if it has none."""
    fingerprint: str
    """Of the round's base model."""
    rows: int = _MOST_ROWS
    """Training rows that the site has, by its profile: so many count as dropped, at most. Its data may have grown since."""


@dataclass(frozen=True)
class EvaluationBounds:
    """What an evaluation can be of."""

    has_one_target: bool
    """Whether each sample has one target (a head's label, a pair); otherwise its tokens are targets."""
    metrics: Collection[str]
    """Those that its task has."""
    max_length: int
    """Tokens of a sample."""
    rows: int = _MOST_ROWS
    """Validation rows likewise."""
    fingerprint: str | None = None
    """Of the run's base model. None: no round is planned that says it."""


def admit_profile(data: bytes, asked: Asked) -> AdmittedProfile:
    """The profile of a site.

    Raises:
        RefusedError: it is refused.
    """
    result = parse(data, ProfileResult, at_most=MAX_RESULT_BYTES, what=asked.what)
    _check_identity(result, asked)
    if result.outcome is Outcome.COMPLETED:
        _check_profile(result, asked.what)
    return AdmittedProfile(result)


def admit_update(data: bytes, asked: Asked, bounds: UpdateBounds) -> AdmittedUpdate:
    """The result of a training. One that failed has nothing to check but whose it is.

    Raises:
        RefusedError: it is refused.
    """
    most_values = most_update_values(bounds.plan)
    result = parse(data, TrainResult, at_most=max_update_bytes(bounds.plan), most_values=most_values, what=asked.what)
    _check_identity(result, asked)
    if result.outcome is Outcome.COMPLETED:
        check_update(result, bounds, asked.what)
    shown = {name: plausible(getattr(result, name), most) for name, most in _SHOWN_FIGURES.items()}
    return AdmittedUpdate(result.model_copy(update={"dropped_rows": min(result.dropped_rows, bounds.rows), **shown}))


def plausible(value: float | None, most: float) -> float | None:
    """A figure that is shown and decides nothing: one that no training has, or NaN, is left out, rather than refused with its update."""
    return value if value is not None and 0 <= value <= most else None


def admit_evaluation(data: bytes, asked: Asked, bounds: EvaluationBounds) -> AdmittedEvaluation:
    """A site's evaluation of a global adapter.

    Raises:
        RefusedError: it is refused.
    """
    result = parse(data, EvaluateResult, at_most=MAX_RESULT_BYTES, what=asked.what)
    _check_identity(result, asked)
    if result.outcome is Outcome.COMPLETED:
        if bounds.fingerprint is not None:
            _check_base(result.fingerprint, bounds.fingerprint, asked.what)
        _check_counts(result, bounds, asked.what)
        _check_metrics(result.metrics, bounds, asked.what)
        _check_loss(result, asked.what)
    return AdmittedEvaluation(result.model_copy(update={"dropped_rows": min(result.dropped_rows, bounds.rows)}))


def admit_export(data: bytes, asked: Asked) -> AdmittedExport:
    """The result of an export.

    Raises:
        RefusedError: it is refused.
    """
    result = parse(data, ExportResult, at_most=MAX_RESULT_BYTES, what=asked.what)
    _check_identity(result, asked)
    return AdmittedExport(result)


def admit_dry_export(data: bytes, asked: Asked) -> AdmittedDryExport:
    """What a dry export found. The contract bounds the names, the number and the sizes of files, which become keys of the run's own folder.

    Raises:
        RefusedError: it is refused.
    """
    result = parse(data, DryExportResult, at_most=MAX_RESULT_BYTES, most_values=_VALUES_OF_DRY_EXPORT, what=asked.what)
    _check_identity(result, asked)
    if result.outcome is Outcome.COMPLETED:
        require_range(len(result.adapter) + len(result.merged), 0, _MOST_EXPORTED, what=f"{asked.what}: number of files")
        for what, files, needed in (("adapter", result.adapter, ADAPTER_FILES), ("merged model", result.merged, _MODEL_FILES)):
            _check_files(files, needed, f"{asked.what}: {what}")
    return AdmittedDryExport(result)


def _check_files(files: tuple[ExportFile, ...], needed: tuple[str, ...], what: str) -> None:
    names = [one.name for one in files]
    if len(set(names)) < len(names):
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what}: it names a file twice")
    if names and (missing := sorted(set(needed) - set(names))):
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what}: it has no {', '.join(missing)}")
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if folders & set(names):
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what}: it has a file and a folder of one name")


def admit_progress(data: bytes, asked: Asked) -> AdmittedProgress:
    """The progress of a task that is being performed. It decides nothing: it is shown.

    Raises:
        RefusedError: it is refused.
    """
    progress = parse(data, TaskProgress, at_most=MAX_PROGRESS_BYTES, most_values=_VALUES_OF_PROGRESS, what=asked.what)
    _check_identity(progress, asked)
    require_range(progress.step, 0, progress.steps, what=f"{asked.what}: step")
    return AdmittedProgress(progress)


def max_update_bytes(plan: Plan | None) -> int:
    """Bytes of an update's result, at most: it names each weight of the plan, and has a loss for each step."""
    if plan is None:
        return MAX_RESULT_BYTES
    return min(_LARGEST_UPDATE, MAX_RESULT_BYTES + _BYTES_OF_A_WEIGHT * len(plan.ranks) + _BYTES_OF_A_STEP * plan.steps)


def most_update_values(plan: Plan | None) -> int:
    """Values of JSON in an update's result, at most."""
    if plan is None:
        return MOST_VALUES
    return min(_LARGEST_UPDATE // _BYTES_OF_A_STEP, MOST_VALUES + _VALUES_OF_A_WEIGHT * len(plan.ranks) + plan.steps)


def hash_of(value: Wire) -> str:
    """SHA-256 of the value of a result or a record, by which a later one is told from it."""
    return hashlib.sha256(value.to_json().encode()).hexdigest()


def check_update(update: TrainResult, bounds: UpdateBounds, what: str) -> None:
    """A completed update is what its plan says.

    Raises:
        RefusedError: it is refused.
    """
    plan = bounds.plan
    if plan is None:
        raise RefusedError(RefusalReason.WRONG_SITE, f"{what}: the round has no plan for this site")
    if update.outcome is not Outcome.COMPLETED or update.adapter is None:
        raise RefusedError(RefusalReason.NO_ADAPTER, f"{what}: outcome {update.outcome} without an adapter, expected a completed training")
    _check_base(update.fingerprint, bounds.fingerprint, what)
    _check_work(update, plan, what)
    _check_ranks(update, plan, what)


def _check_identity(
    result: ProfileResult | TrainResult | EvaluateResult | DryExportResult | ExportResult | TaskProgress, asked: Asked
) -> None:
    require_equal(RefusalReason.WRONG_RUN, found=_named(result.run), expected=_named(asked.run), what=f"{asked.what}: run")
    if asked.round is not None:
        require_equal(RefusalReason.WRONG_ROUND, found=result.round, expected=asked.round, what=f"{asked.what}: round")
    require_equal(RefusalReason.WRONG_SITE, found=result.site, expected=asked.site, what=f"{asked.what}: site")
    require_equal(RefusalReason.WRONG_ATTEMPT, found=result.attempt, expected=asked.attempt, what=f"{asked.what}: attempt")


def _named(run: RunRef) -> str:
    return f"{run.namespace}/{run.name} of uid {run.uid}"


def _check_base(found: str | None, expected: str, what: str) -> None:
    require_equal(RefusalReason.WRONG_BASE, found=found, expected=expected, what=f"{what}: base fingerprint")


def _check_profile(result: ProfileResult, what: str) -> None:
    if result.base is None or result.fingerprint is None:
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what}: it says nothing of the base model, expected its facts and fingerprint")
    weights = {weight.name for weight in result.base.weights}
    if len(weights) < len(result.base.weights):
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what}: it names a weight twice")
    if len(set(result.labels)) < len(result.labels):
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what}: it has a label twice")
    require_range(result.train_labels, 0, result.train_samples, what=f"{what}: trainLabels")
    require_range(result.validation_labels, 0, result.validation_samples, what=f"{what}: validationLabels")
    scores = result.importance.first_half.keys() if result.importance else set()
    if not scores <= weights:
        raise RefusedError(
            RefusalReason.IMPLAUSIBLE, f"{what}: it scores {len(scores - weights)} weights that its base model does not have"
        )
    if result.longest_tokens:  # 0: not recorded
        require_range(result.mean_tokens, 0, result.longest_tokens, what=f"{what}: meanTokens")


def _check_work(update: TrainResult, plan: Plan, what: str) -> None:
    """The work that the update's weight in the average depends on is within the plan, and so is what the next plan is made from."""
    require_range(update.steps, 1, plan.steps, what=f"{what}: steps", reason=RefusalReason.WRONG_STEPS)
    require_range(update.samples, 1, update.steps * plan.batch_size, what=f"{what}: samples", reason=RefusalReason.WRONG_STEPS)
    require_range(update.resumed_from_step, 0, update.steps, what=f"{what}: resumedFromStep")
    require_range(len(update.losses), 0, plan.steps, what=f"{what}: number of losses")
    require_range(max(map(abs, update.losses), default=0.0), 0, MAX_LOSS, what=f"{what}: largest training loss")


def _check_ranks(update: TrainResult, plan: Plan, what: str) -> None:
    for weight in sorted({*plan.ranks, *update.ranks}):
        rank = plan.ranks.get(weight, 0)
        require_equal(RefusalReason.WRONG_RANK, found=update.ranks.get(weight, 0), expected=rank, what=f"{what}: rank of {weight}")
        scale = update.scales.get(weight)
        if rank and (scale is None or not math.isclose(scale, plan.scale(weight), rel_tol=_SCALE_TOLERANCE)):
            raise RefusedError(RefusalReason.WRONG_SCALE, f"{what}: scale of {weight}: found {scale}, expected {plan.scale(weight)}")


def _check_counts(result: EvaluateResult, bounds: EvaluationBounds, what: str) -> None:
    # No closer: a run's maxSamples may be edited while a site evaluates. How much they count is bounded where they are averaged.
    require_range(result.samples, 0, _MOST_SAMPLES, what=f"{what}: samples")
    if bounds.has_one_target:
        require_equal(RefusalReason.IMPLAUSIBLE, found=result.targets, expected=result.samples, what=f"{what}: targets")
    else:
        require_range(result.targets, 0, result.samples * bounds.max_length, what=f"{what}: targets")
    require_range(len(result.examples), 0, _MOST_SHOWN, what=f"{what}: number of rows shown")


def _check_loss(result: EvaluateResult, what: str) -> None:
    if result.loss is None:
        return
    require_range(result.loss, 0, MAX_LOSS, what=f"{what}: loss")
    perplexity = result.metrics.get("perplexity")
    if perplexity is not None and not math.isclose(perplexity, perplexity_of(result.loss), rel_tol=_TOLERANCE):
        found = f"found {perplexity:g}, expected {perplexity_of(result.loss):g}, the exponential of the loss"
        raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what}: perplexity: {found}")


def _check_metrics(metrics: Mapping[str, float], bounds: EvaluationBounds, what: str) -> None:
    for name, value in sorted(metrics.items()):
        if name not in bounds.metrics:
            raise RefusedError(RefusalReason.IMPLAUSIBLE, f"{what}: it has another metric than {', '.join(sorted(bounds.metrics))}")
        if name in _UNIT_METRICS:
            require_range(value, -_TOLERANCE, 1 + _TOLERANCE, what=f"{what}: {name}")
        elif name in _CORRELATIONS:
            require_range(value, -1 - _TOLERANCE, 1 + _TOLERANCE, what=f"{what}: {name}")
        elif name == "rewardMargin":
            require_range(value, -MAX_LOSS, MAX_LOSS, what=f"{what}: {name}")
        elif name == "mse":
            require_range(value, 0, MAX_LOSS, what=f"{what}: {name}")
        elif name == "bleu":
            require_range(value, -_TOLERANCE, _MOST_BLEU + _TOLERANCE, what=f"{what}: {name}")
