"""The gate: what an update must be before it may touch the global model. A refusal costs that site the round and nothing else.

It runs before aggregation, on every update, and trusts nothing that came from the site: first the result against the plan, then the
bytes against the result, then the tensors against the plan. It streams: one weight's tensors are held at a time.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedpipe_operator.aggregation import refusals
from fedpipe_operator.aggregation.keys import factor_keys
from fedpipe_operator.aggregation.tensors import Float32, MalformedError, Source, TensorFile, open_tensors, sha256_of
from fedpipe_operator.aggregation.values import Float64
from fedpipe_operator.rounds.records import RoundPlan, Verdict
from fedpipe_trainer.contract import Outcome, RunRef, TrainResult

_SCALE_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class Expected:
    """What the update must be: of which task, to which plan, and how far from the global adapter at most."""

    run: RunRef
    plan: RoundPlan
    site: str
    attempt: int
    max_norm: float
    """Bound on the Frobenius norm of the whole update's increment (over all weights and head tensors)."""
    previous: TensorFile | None = None
    """The global adapter that the round started from; None in round 1."""


class _Refused(Exception):  # noqa: N818 (it is a verdict on its way up, not an error)
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.verdict = Verdict(accepted=False, reason=reason, message=message)


def check(update: TrainResult, source: Source, expected: Expected) -> Verdict:
    """Accepted, or refused for a reason of `refusals.REASONS` with a message that says what, where, and found against expected.

    Bad bytes are refused, never raised; an OSError of the source itself is the caller's.
    """
    try:
        _check_task(update, expected)
        _check_plan(update, expected)
        _check_bytes(update, source, expected.site)
        tensors = _opened(source, expected.site)
        _check_tensors(tensors, expected)
        _check_values(tensors, update, expected)
    except _Refused as refused:
        return refused.verdict
    return Verdict(accepted=True)


def expected_shapes(plan: RoundPlan, site: str) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of this site's adapter file, by key."""
    shapes = dict(plan.head)
    for weight, (d_out, d_in) in plan.weights.items():
        if rank := plan.plans[site].ranks.get(weight, 0):
            a_key, b_key = factor_keys(weight)
            shapes |= {a_key: (rank, d_in), b_key: (d_out, rank)}
    return shapes


def _require_equal(reason: str, *, found: object, expected: object, what: str) -> None:
    if found != expected:
        raise _Refused(reason, f"{what}: found {found}, expected {expected}")


def _check_task(update: TrainResult, expected: Expected) -> None:
    of = f"result of site {expected.site}"
    _require_equal(refusals.WRONG_RUN, found=update.run.to_json(), expected=expected.run.to_json(), what=f"{of}: run")
    _require_equal(refusals.WRONG_ROUND, found=update.round, expected=expected.plan.round, what=f"{of}: round")
    _require_equal(refusals.WRONG_SITE, found=update.site, expected=expected.site, what=f"{of}: site")
    if expected.site not in expected.plan.plans:
        raise _Refused(refusals.WRONG_SITE, f"{of}: the round has no plan for this site")
    _require_equal(refusals.WRONG_ATTEMPT, found=update.attempt, expected=expected.attempt, what=f"{of}: attempt")


def _check_plan(update: TrainResult, expected: Expected) -> None:
    of, plan = f"result of site {expected.site}", expected.plan.plans[expected.site]
    if update.outcome is not Outcome.COMPLETED or update.adapter is None:
        raise _Refused(refusals.NO_ADAPTER, f"{of}: outcome {update.outcome}, adapter {update.adapter}, expected a completed training")
    _require_equal(refusals.WRONG_BASE, found=update.fingerprint, expected=expected.plan.fingerprint, what=f"{of}: base fingerprint")
    if update.samples < 1:
        raise _Refused(refusals.NO_SAMPLES, f"{of}: trained on {update.samples} samples, expected at least 1")
    for weight in sorted({*plan.ranks, *update.ranks}):
        rank = plan.ranks.get(weight, 0)
        _require_equal(refusals.WRONG_RANK, found=update.ranks.get(weight, 0), expected=rank, what=f"{of}: rank of {weight}")
        scale = update.scales.get(weight)
        if rank and (scale is None or not math.isclose(scale, plan.scale(weight), rel_tol=_SCALE_TOLERANCE)):
            raise _Refused(refusals.WRONG_SCALE, f"{of}: scale of {weight}: found {scale}, expected {plan.scale(weight)}")


def _check_bytes(update: TrainResult, source: Source, site: str) -> None:
    vouched = update.adapter
    if vouched is None:
        raise _Refused(refusals.NO_ADAPTER, f"result of site {site}: names no adapter")
    of = f"adapter of site {site}"
    _require_equal(refusals.HASH_MISMATCH, found=source.size, expected=vouched.size, what=f"{of}: size in bytes")
    _require_equal(refusals.HASH_MISMATCH, found=sha256_of(source), expected=vouched.sha256, what=f"{of}: SHA-256")


def _opened(source: Source, site: str) -> TensorFile:
    try:
        return open_tensors(source)
    except MalformedError as error:
        raise _Refused(refusals.MALFORMED, f"adapter of site {site}: {error}") from error


def _check_tensors(tensors: TensorFile, expected: Expected) -> None:
    of, shapes = f"adapter of site {expected.site}", expected_shapes(expected.plan, expected.site)
    for reason, surplus, word in (
        (refusals.UNKNOWN_KEY, tensors.entries.keys() - shapes.keys(), "the plan names no tensor"),
        (refusals.MISSING_KEY, shapes.keys() - tensors.entries.keys(), "the file has no tensor"),
    ):
        if surplus:
            raise _Refused(reason, f"{of}: {word} {min(surplus)} ({len(surplus)} such; {len(shapes)} tensors expected)")
    for key, shape in sorted(shapes.items()):
        entry = tensors.entries[key]
        _require_equal(refusals.WRONG_SHAPE, found=entry.shape, expected=shape, what=f"{of}: shape of {key}")
        _require_equal(refusals.WRONG_DTYPE, found=entry.dtype, expected="F32", what=f"{of}: dtype of {key}")


def _check_values(tensors: TensorFile, update: TrainResult, expected: Expected) -> None:
    """Everything is finite, and the increment from the global adapter is bounded."""
    site, plan = expected.site, expected.plan
    squares = {key: _squared_step(_finite(tensors, key, site), expected.previous, key) for key in sorted(plan.head)}
    for weight in sorted(plan.weights):
        if plan.plans[site].ranks.get(weight, 0):
            a, b = (_finite(tensors, key, site) for key in factor_keys(weight))
            squares[weight] = _squared_increment(a, b, update.scales[weight], _global_factors(expected.previous, weight, len(a)))
    norm = math.sqrt(sum(squares.values()))
    if norm > expected.max_norm:
        raise _Refused(refusals.NORM_TOO_LARGE, _too_large(squares, norm, expected))


def _too_large(squares: Mapping[str, float], norm: float, expected: Expected) -> str:
    worst = max(squares, key=lambda name: squares[name])
    found = f"found {norm:.4g} ({math.sqrt(squares[worst]):.4g} of it at {worst})"
    return f"adapter of site {expected.site}: Frobenius norm of the increment: {found}, expected at most {expected.max_norm:.4g}"


def _finite(tensors: TensorFile, key: str, site: str) -> Float32:
    tensor = tensors.read(key)
    finite = np.isfinite(tensor)
    if not finite.all():
        bad = finite.size - int(np.count_nonzero(finite))
        raise _Refused(
            refusals.NOT_FINITE, f"adapter of site {site}: {bad} of {finite.size} values of {key} are NaN or infinite, expected none"
        )
    return tensor


def _global_factors(previous: TensorFile | None, weight: str, rank: int) -> tuple[Float32, Float32] | None:
    a_key, b_key = factor_keys(weight)
    if previous is None or a_key not in previous.entries:
        return None
    return previous.read(a_key)[:rank], previous.read(b_key)[:, :rank]


def _squared_increment(a: Float32, b: Float32, scale: float, start: tuple[Float32, Float32] | None) -> float:
    """‖s·B·A − B_g·A_g‖²_F = ⟨LᵀL, R·Rᵀ⟩ with L = [s·B | −B_g], R = [A ; A_g]: the dense matrix is never formed."""
    left: Float64 = b * np.float64(scale)
    right: Float64 = a.astype(np.float64)
    if start is not None:
        right = np.vstack([right, start[0]])
        left = np.hstack([left, -start[1]])
    return max(0.0, float(np.vdot(left.T @ left, right @ right.T)))


def _squared_step(tensor: Float32, previous: TensorFile | None, key: str) -> float:
    step: Float64 = tensor.astype(np.float64)
    if previous is not None:
        step = step - previous.read(key)
    return float(np.vdot(step, step))
