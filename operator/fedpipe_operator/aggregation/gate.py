"""The gate: the checks that every update must pass before it is aggregated. A refusal costs that site the round and nothing else.

It trusts nothing that comes from a site: it checks the result against the plan, then the bytes against the result, then the tensors
against the plan. It streams: one weight's tensors are held in memory at a time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from fedpipe_operator.aggregation.factors import Float64
from fedpipe_operator.aggregation.tensors import Float32, MalformedError, Source, TensorFile, factor_keys, open_tensors, sha256_of
from fedpipe_operator.rounds.consent import mixable
from fedpipe_operator.rounds.records import RoundPlan, Verdict
from fedpipe_trainer.contract import Outcome, Plan, RunRef, TrainResult

_SCALE_TOLERANCE: Final = 1e-6


class RefusalReason(StrEnum):
    """Why the gate refuses an update."""

    NO_ADAPTER = "NoAdapter"
    """The result reports no completed training with an adapter."""
    WRONG_RUN = "WrongRun"
    """The result belongs to another run."""
    WRONG_ROUND = "WrongRound"
    """The result belongs to another round."""
    WRONG_SITE = "WrongSite"
    """The result belongs to another site, or to a site that has no plan in this round."""
    WRONG_ATTEMPT = "WrongAttempt"
    """The result belongs to another attempt."""
    WRONG_BASE = "WrongBase"
    """The update was trained on another base model."""
    TOO_FEW_SITES = "TooFewSites"
    """The site's policy asks for more updates in an aggregate than were accepted."""
    WRONG_STEPS = "WrongSteps"
    """It reports no steps or samples, or more than the plan has."""
    WRONG_RANK = "WrongRank"
    """The ranks are not the planned ones."""
    WRONG_SCALE = "WrongScale"
    """The scales of B·A are not the planned ones."""
    HASH_MISMATCH = "HashMismatch"
    """The adapter's size or SHA-256 is not the one that the result states."""
    MALFORMED = "Malformed"
    """The adapter is not a complete safetensors file."""
    UNKNOWN_KEY = "UnknownKey"
    """The adapter has a tensor that is not in the plan."""
    MISSING_KEY = "MissingKey"
    """The adapter lacks a tensor that is in the plan."""
    WRONG_SHAPE = "WrongShape"
    """A tensor does not have the planned shape."""
    WRONG_DTYPE = "WrongDtype"
    """A tensor is not float32."""
    NOT_FINITE = "NotFinite"
    """A tensor contains NaN or infinity."""
    NORM_TOO_LARGE = "NormTooLarge"
    """The norm of the whole update's increment exceeds `spec.aggregation.maxNorm`."""


@dataclass(frozen=True)
class Expected:
    """What the update must match: its task and plan, and the largest distance from the global adapter."""

    run: RunRef
    plan: RoundPlan
    site: str
    attempt: int
    max_norm: float
    """Upper bound on the Frobenius norm of the whole update's increment: of all weights and head tensors together, not of each weight."""
    previous: TensorFile | None = None
    """The global adapter that the round started from; None in round 1."""


def refuse_unmixed(verdicts: Mapping[str, Verdict], min_sites: Mapping[str, int]) -> dict[str, Verdict]:
    """The verdicts, with a refusal of each accepted update whose site asks for more updates in an aggregate than are accepted.

    Args:
        verdicts: by site.
        min_sites: by site, the least number of updates in an aggregate with its own.
    """
    accepted = {site: min_sites.get(site, 1) for site, verdict in verdicts.items() if verdict.accepted}
    mixed = mixable(accepted)
    message = "policy.minSites of the site is {}, and without it {} of {} accepted updates may be aggregated"
    refused = {
        site: Verdict(accepted=False, reason=RefusalReason.TOO_FEW_SITES, message=message.format(least, len(mixed), len(accepted)))
        for site, least in accepted.items()
        if site not in mixed
    }
    return dict(verdicts) | refused


class _Refusal(Exception):  # noqa: N818 (it carries a verdict to `check`, it is not an error)
    def __init__(self, reason: RefusalReason, message: str) -> None:
        super().__init__(message)
        self.verdict = Verdict(accepted=False, reason=reason, message=message)


def check(update: TrainResult, source: Source, expected: Expected) -> Verdict:
    """Accepted, or refused with a `RefusalReason` and a message that names the object, what was found and what was expected.

    Malformed bytes lead to a refusal and never to an exception; an OSError of the source itself is raised.
    """
    try:
        _check_task(update, expected)
        _check_plan(update, expected)
        _check_bytes(update, source, expected.site)
        tensors = _open_adapter(source, expected.site)
        _check_tensors(tensors, expected)
        _check_values(tensors, update, expected)
    except _Refusal as refusal:
        return refusal.verdict
    return Verdict(accepted=True)


def expected_shapes(plan: RoundPlan, site: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of this site's adapter file, by key."""
    shapes = dict(plan.head)
    for weight, (d_out, d_in) in plan.weights.items():
        if rank := plan.plans[site].ranks.get(weight, 0):
            a_key, b_key = factor_keys(weight)
            shapes |= {a_key: (rank, d_in), b_key: (d_out, rank)}
    return shapes


def _require_equal(reason: RefusalReason, *, found: object, expected: object, what: str) -> None:
    if found != expected:
        raise _Refusal(reason, f"{what}: found {found}, expected {expected}")


def _check_task(update: TrainResult, expected: Expected) -> None:
    result = f"result of site {expected.site}"
    _require_equal(RefusalReason.WRONG_RUN, found=update.run.to_json(), expected=expected.run.to_json(), what=f"{result}: run")
    _require_equal(RefusalReason.WRONG_ROUND, found=update.round, expected=expected.plan.round, what=f"{result}: round")
    _require_equal(RefusalReason.WRONG_SITE, found=update.site, expected=expected.site, what=f"{result}: site")
    if expected.site not in expected.plan.plans:
        raise _Refusal(RefusalReason.WRONG_SITE, f"{result}: the round has no plan for this site")
    _require_equal(RefusalReason.WRONG_ATTEMPT, found=update.attempt, expected=expected.attempt, what=f"{result}: attempt")


def _check_plan(update: TrainResult, expected: Expected) -> None:
    result, plan = f"result of site {expected.site}", expected.plan.plans[expected.site]
    if update.outcome is not Outcome.COMPLETED or update.adapter is None:
        raise _Refusal(
            RefusalReason.NO_ADAPTER, f"{result}: outcome {update.outcome}, adapter {update.adapter}, expected a completed training"
        )
    _require_equal(
        RefusalReason.WRONG_BASE, found=update.fingerprint, expected=expected.plan.fingerprint, what=f"{result}: base fingerprint"
    )
    _check_work(update, plan, result)
    for weight in sorted({*plan.ranks, *update.ranks}):
        rank = plan.ranks.get(weight, 0)
        _require_equal(RefusalReason.WRONG_RANK, found=update.ranks.get(weight, 0), expected=rank, what=f"{result}: rank of {weight}")
        scale = update.scales.get(weight)
        if rank and (scale is None or not math.isclose(scale, plan.scale(weight), rel_tol=_SCALE_TOLERANCE)):
            raise _Refusal(RefusalReason.WRONG_SCALE, f"{result}: scale of {weight}: found {scale}, expected {plan.scale(weight)}")


def _check_work(update: TrainResult, plan: Plan, result: str) -> None:
    """The work that the update's weight in the average depends on is within the plan."""
    for name, found, most in (
        ("steps", update.steps, plan.steps),
        ("samples", update.samples, update.steps * plan.batch_size),
    ):
        if not 1 <= found <= most:
            raise _Refusal(RefusalReason.WRONG_STEPS, f"{result}: {name}: found {found}, expected 1 to {most}")


def _check_bytes(update: TrainResult, source: Source, site: str) -> None:
    stated = update.adapter
    if stated is None:
        raise _Refusal(RefusalReason.NO_ADAPTER, f"result of site {site}: names no adapter")
    adapter = f"adapter of site {site}"
    _require_equal(RefusalReason.HASH_MISMATCH, found=source.size, expected=stated.size, what=f"{adapter}: size in bytes")
    _require_equal(RefusalReason.HASH_MISMATCH, found=sha256_of(source), expected=stated.sha256, what=f"{adapter}: SHA-256")


def _open_adapter(source: Source, site: str) -> TensorFile:
    try:
        return open_tensors(source)
    except MalformedError as error:
        raise _Refusal(RefusalReason.MALFORMED, f"adapter of site {site}: {error}") from error


def _check_tensors(tensors: TensorFile, expected: Expected) -> None:
    adapter, shapes = f"adapter of site {expected.site}", expected_shapes(expected.plan, expected.site)
    for reason, keys, fault in (
        (RefusalReason.UNKNOWN_KEY, tensors.entries.keys() - shapes.keys(), "the plan has no tensor"),
        (RefusalReason.MISSING_KEY, shapes.keys() - tensors.entries.keys(), "the file has no tensor"),
    ):
        if keys:
            raise _Refusal(reason, f"{adapter}: {fault} {min(keys)} ({len(keys)} such; {len(shapes)} tensors expected)")
    for key, shape in sorted(shapes.items()):
        entry = tensors.entries[key]
        _require_equal(RefusalReason.WRONG_SHAPE, found=entry.shape, expected=shape, what=f"{adapter}: shape of {key}")
        _require_equal(RefusalReason.WRONG_DTYPE, found=entry.dtype, expected="F32", what=f"{adapter}: dtype of {key}")


def _check_values(tensors: TensorFile, update: TrainResult, expected: Expected) -> None:
    """All values are finite, and the norm of the increment from the global adapter is at most `max_norm`."""
    site, plan = expected.site, expected.plan
    squares = {key: _squared_distance(_read_finite(tensors, key, site), expected.previous, key) for key in sorted(plan.head)}
    for weight in sorted(plan.weights):
        if plan.plans[site].ranks.get(weight, 0):
            a, b = (_read_finite(tensors, key, site) for key in factor_keys(weight))
            squares[weight] = _squared_increment(a, b, update.scales[weight], _global_factors(expected.previous, weight, len(a)))
    norm = math.sqrt(sum(squares.values()))
    if norm > expected.max_norm:
        raise _Refusal(RefusalReason.NORM_TOO_LARGE, _norm_message(squares, norm, expected))


def _norm_message(squares: Mapping[str, float], norm: float, expected: Expected) -> str:
    largest = max(squares, key=lambda name: squares[name])
    found = f"found {norm:.4g} ({math.sqrt(squares[largest]):.4g} of it at {largest})"
    return f"adapter of site {expected.site}: Frobenius norm of the increment: {found}, expected at most {expected.max_norm:.4g}"


def _read_finite(tensors: TensorFile, key: str, site: str) -> Float32:
    tensor = tensors.read(key)
    finite = np.isfinite(tensor)
    if not finite.all():
        count = finite.size - int(np.count_nonzero(finite))
        raise _Refusal(
            RefusalReason.NOT_FINITE, f"adapter of site {site}: {count} of {finite.size} values of {key} are NaN or infinite, expected none"
        )
    return tensor


def _global_factors(previous: TensorFile | None, weight: str, rank: int) -> tuple[Float32, Float32] | None:
    a_key, b_key = factor_keys(weight)
    if previous is None or a_key not in previous.entries:
        return None
    return previous.read(a_key)[:rank], previous.read(b_key)[:, :rank]


def _squared_increment(a: Float32, b: Float32, scale: float, start: tuple[Float32, Float32] | None) -> float:
    """‖s·B·A − B_g·A_g‖²_F = ⟨LᵀL, R·Rᵀ⟩ with L = [s·B | −B_g], R = [A ; A_g]: the dense matrix is not formed."""
    left: Float64 = b * np.float64(scale)
    right: Float64 = a.astype(np.float64)
    if start is not None:
        right = np.vstack([right, start[0]])
        left = np.hstack([left, -start[1]])
    return max(0.0, float(np.vdot(left.T @ left, right @ right.T)))


def _squared_distance(tensor: Float32, previous: TensorFile | None, key: str) -> float:
    increment: Float64 = tensor.astype(np.float64)
    if previous is not None:
        increment = increment - previous.read(key)
    return float(np.vdot(increment, increment))
