"""Admission and gate refuse each kind of invalid update for a reason; the message names the object, what was found and expected."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from toy_rounds import HEAD, RUN, Fleet, RecordingSource

from fedpipe_operator.admission import AdmittedUpdate, Asked, RefusalReason, RefusedError, UpdateBounds, admit_update
from fedpipe_operator.aggregation import Candidate
from fedpipe_operator.aggregation.gate import Expected, check, refuse_unmixed
from fedpipe_operator.aggregation.tensors import open_tensors
from fedpipe_operator.rounds.records import Verdict, verdict_of
from fedpipe_trainer.contract import Outcome, RunRef

Q_A, Q_B = "base_model.model.layer.0.q.lora_A.weight", "base_model.model.layer.0.q.lora_B.weight"
Change = Callable[[dict[str, np.ndarray]], object]


def check_alpha(fleet: Fleet, candidate: Candidate, *, max_norm: float = 1e4, previous: bytes | None = None) -> Verdict:
    previous_tensors = open_tensors(replace(candidate.source, data=previous)) if previous else None
    plan = fleet.plan()
    try:
        result = admit_update(
            candidate.result.to_json().encode(), Asked(RUN, "alpha", 1, 0), UpdateBounds(plan.plans["alpha"], plan.fingerprint)
        )
    except RefusedError as error:
        return verdict_of(error.refused)
    return check(result, candidate.source, Expected(plan=plan, site="alpha", max_norm=max_norm, previous=previous_tensors))


def with_tensors(fleet: Fleet, change: Change) -> Candidate:
    tensors = fleet.tensors("alpha")
    change(tensors)
    return fleet.candidate("alpha", tensors)


def with_result(fleet: Fleet, **changes: object) -> Candidate:
    candidate = fleet.candidate("alpha")
    return replace(candidate, result=candidate.result.model_copy(update=changes))


def with_bytes(fleet: Fleet, change: Callable[[bytes], bytes], *, restated: bool) -> Candidate:
    candidate = fleet.candidate("alpha")
    data = change(candidate.source.data)
    result = fleet.result("alpha", data) if restated else candidate.result
    return replace(candidate, result=result, source=replace(candidate.source, data=data))


def overwrite_last(key: str, value: float) -> Change:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[key][-1, -1] = value

    return change


def reshape(key: str) -> Change:
    return lambda tensors: tensors.update({key: np.ascontiguousarray(tensors[key].T)})


CASES: dict[str, list[tuple[Callable[[Fleet], Candidate], str]]] = {
    "NoAdapter": [
        (lambda f: with_result(f, adapter=None), "expected a completed training"),
    ],
    "WrongRun": [
        (
            lambda f: with_result(f, run=RunRef(namespace="default", name="demo", uid="0001")),
            "run: found default/demo of uid 0001, expected default/demo of uid 0000",
        )
    ],
    "WrongRound": [(lambda f: with_result(f, round=9), "round: found 9, expected 1")],
    "WrongSite": [(lambda f: with_result(f, site="beta"), "site: found beta, expected alpha")],
    "WrongAttempt": [(lambda f: with_result(f, attempt=3), "attempt: found 3, expected 0")],
    "WrongBase": [
        (lambda f: with_result(f, fingerprint="e" * 64), "found eeee"),
        (lambda f: with_result(f, fingerprint=None), "found None"),
    ],
    "WrongSteps": [
        (lambda f: with_result(f, steps=0), "steps: found 0, expected 1 to 1"),
        (lambda f: with_result(f, steps=2), "steps: found 2, expected 1 to 1"),
        (lambda f: with_result(f, samples=0), "samples: found 0, expected 1 to 1"),
        (lambda f: with_result(f, samples=10**12), "samples: found 1000000000000, expected 1 to 1"),
    ],
    "WrongRank": [
        (lambda f: with_result(f, ranks={"layer.0.q": 4, "layer.0.v": 3}), "rank of layer.0.v: found 3, expected 2"),
        (lambda f: with_result(f, ranks={"layer.0.q": 4}), "rank of layer.0.v: found 0, expected 2"),
        (lambda f: with_result(f, ranks={"layer.0.q": 4, "layer.0.v": 2, "x": 1}), "rank of x: found 1, expected 0"),
    ],
    "WrongScale": [
        (lambda f: with_result(f, scales={"layer.0.q": 16.0, "layer.0.v": 11.3137085}), "layer.0.q: found 16.0, expected 8.0"),
        (lambda f: with_result(f, scales={}), "layer.0.q: found None"),
    ],
    "Unreadable": [
        (lambda f: with_result(f, samples=-5), "samples: greater than equal"),
        (lambda f: with_result(f, scales={"layer.0.q": float("nan"), "layer.0.v": 11.3137085}), "scales.`layer.0.q`: float type"),
    ],
    "Implausible": [
        (lambda f: with_result(f, losses=(1.0, 2.0)), "number of losses: found 2, expected 0 to 1"),
        (lambda f: with_result(f, losses=(1e300,)), "largest training loss: found 1e+300, expected 0 to 1e+06"),
        (lambda f: with_result(f, resumed_from_step=7), "resumedFromStep: found 7, expected 0 to 1"),
    ],
    "TooLarge": [
        (lambda f: with_bytes(f, lambda data: data + bytes(10_000), restated=True), "expected at most"),
        (lambda f: with_result(f, software={f"package {i}": "x" * 1000 for i in range(1100)}), "bytes, expected at most 10"),
    ],
    "HashMismatch": [
        (lambda f: with_bytes(f, lambda data: data[:-1] + b"!", restated=False), "SHA-256: found"),
        (lambda f: with_bytes(f, lambda data: data[:-1], restated=False), "size in bytes"),
    ],
    "Malformed": [
        (lambda f: with_bytes(f, lambda data: data[:-1], restated=True), "the tensors end at byte"),
        (lambda f: with_bytes(f, lambda _: b"PK\x03\x04 a pickle, perhaps", restated=True), "the header claims"),
        (lambda f: with_bytes(f, lambda _: b"", restated=True), "ends after 0 of 8 bytes"),
    ],
    "UnknownKey": [
        (lambda f: with_tensors(f, lambda t: t.update(extra=np.zeros(1, np.float32))), "the plan has no tensor extra (1 such; 5")
    ],
    "MissingKey": [
        (lambda f: with_tensors(f, lambda t: t.pop(Q_B)), f"has no tensor {Q_B} (1 such; 5"),
        (lambda f: with_tensors(f, lambda t: t.pop(HEAD)), f"has no tensor {HEAD}"),
    ],
    "WrongShape": [
        (lambda f: with_tensors(f, reshape(Q_A)), f"shape of {Q_A}: found (10, 4), expected (4, 10)"),
        (lambda f: with_tensors(f, reshape(HEAD)), f"shape of {HEAD}: found (10, 3), expected (3, 10)"),
    ],
    "WrongDtype": [(lambda f: with_tensors(f, lambda t: t.update({Q_B: t[Q_B].astype(np.float16)})), f"{Q_B}: found F16, expected F32")],
    "NotFinite": [
        (lambda f: with_tensors(f, overwrite_last(Q_A, np.nan)), f"1 of 40 values of {Q_A}"),
        (lambda f: with_tensors(f, overwrite_last(Q_B, np.inf)), f"1 of 48 values of {Q_B}"),
        (lambda f: with_tensors(f, overwrite_last(HEAD, -np.inf)), f"1 of 30 values of {HEAD}"),
    ],
    "NormTooLarge": [
        (lambda f: with_tensors(f, overwrite_last(Q_B, 3e38)), "at layer.0.q), expected at most 1e+04"),
        (lambda f: with_tensors(f, overwrite_last(HEAD, 1e9)), f"found 1e+09 (1e+09 of it at {HEAD})"),
    ],
}


def test_a_valid_update_is_accepted(fleet: Fleet) -> None:
    assert check_alpha(fleet, fleet.candidate("alpha")) == Verdict(accepted=True)


@pytest.mark.parametrize(
    ("reason", "make", "text"),
    [pytest.param(reason, make, text, id=f"{reason}-{i}") for reason, rows in CASES.items() for i, (make, text) in enumerate(rows)],
)
def test_an_invalid_update_is_refused_with_its_reason(fleet: Fleet, reason: str, make: Callable[[Fleet], Candidate], text: str) -> None:
    verdict = check_alpha(fleet, make(fleet))

    assert (verdict.accepted, verdict.reason) == (False, reason)
    assert text in verdict.message
    assert "site alpha" in verdict.message


def test_every_reason_has_a_case() -> None:
    elsewhere = {
        RefusalReason.OVERWRITTEN,  # told by the worker, which reads a result again: see test_worker.py
        RefusalReason.INCREMENT_TOO_LONG,  # no update is so alone: see test_robust_rounds.py
        RefusalReason.TOO_FEW_SITES,  # nor so few: see below
    }

    assert CASES.keys() | elsewhere == set(RefusalReason)


def test_an_accepted_update_is_refused_if_its_site_asks_for_more_of_them() -> None:
    accepted, refused = Verdict(accepted=True), Verdict(accepted=False, reason="WrongBase")
    verdicts = {"a": accepted, "b": accepted, "c": accepted, "d": refused}

    checked = refuse_unmixed(verdicts, {"a": 2, "b": 2, "c": 3, "d": 4})
    again = refuse_unmixed(verdicts, {"a": 3, "b": 2, "c": 4})

    assert checked == verdicts
    assert {site: verdict.reason for site, verdict in again.items()} == dict.fromkeys("abc", "TooFewSites") | {"d": "WrongBase"}


def test_without_policies_no_verdict_changes() -> None:
    verdicts = {"a": Verdict(accepted=True)}

    assert refuse_unmixed(verdicts, {}) == verdicts


@pytest.mark.parametrize(
    "name",
    ["\ud800", "\u0000", "\u001b[31mred", "\u202egnp", "two\nlines", "x" * 4000],
    ids=["surrogate", "NUL", "escape", "RTL", "line", "long"],
)
@pytest.mark.parametrize("shape", [[1], [2], [-1] * 500], ids=["unknown", "of another size", "invalid"])
def test_a_tensor_of_any_name_is_refused_in_one_printable_line_that_can_be_recorded(fleet: Fleet, name: str, shape: list[int]) -> None:
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(4)

    verdict = check_alpha(fleet, with_bytes(fleet, lambda _: data, restated=True))

    assert verdict.reason in {"UnknownKey", "Malformed"}
    assert verdict.message.isprintable()
    assert len(verdict.message) <= 1001
    assert Verdict.model_validate_json(verdict.to_json().encode()) == verdict


def test_a_fault_of_the_gate_itself_is_that_sites_refusal(fleet: Fleet) -> None:
    def faulty(*_: object) -> Any:
        raise ZeroDivisionError

    candidate, plan = fleet.candidate("alpha"), fleet.plan()

    verdict = check(candidate.result, candidate.source, Expected(plan=plan, site="alpha", max_norm=1e4, squared_lengths=faulty))

    assert (verdict.reason, verdict.message) == ("Malformed", "adapter of site alpha: it cannot be checked: ZeroDivisionError; see the log")


@pytest.mark.parametrize("own", [OSError, MemoryError])
def test_a_fault_of_the_machine_is_no_sites_refusal(fleet: Fleet, own: type[Exception]) -> None:
    def failing(*_: object) -> Any:
        raise own

    candidate, plan = fleet.candidate("alpha"), fleet.plan()

    with pytest.raises(own):
        check(candidate.result, candidate.source, Expected(plan=plan, site="alpha", max_norm=1e4, squared_lengths=failing))


def test_a_safetensors_header_of_39_mb_is_not_read(fleet: Fleet) -> None:
    def long(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length] + b" " * (39_000_000 - length)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]

    candidate = with_bytes(fleet, long, restated=True)

    assert check_alpha(fleet, candidate).reason == "TooLarge"
    assert candidate.source.log == []


def test_a_header_longer_than_its_plan_implies_is_not_parsed(fleet: Fleet) -> None:
    wide = replace(fleet, head={HEAD: (3, 10_000)})
    data = (100_000).to_bytes(8, "little") + bytes(100_000)

    verdict = check_alpha(wide, Candidate(result=AdmittedUpdate(wide.result("alpha", data)), source=RecordingSource(data)))

    assert (verdict.reason, "a header may have at most" in verdict.message) == ("Malformed", True), verdict.message


def test_a_site_without_a_plan_is_refused(fleet: Fleet) -> None:
    result = fleet.candidate("alpha").result

    with pytest.raises(RefusedError) as error:
        admit_update(result.to_json().encode(), Asked(RUN, "alpha", 1, 0), UpdateBounds(None, "f" * 64))

    assert error.value.refused.reason == "WrongSite"


def test_the_result_of_a_training_that_failed_is_admitted_as_such(fleet: Fleet) -> None:
    failed = with_result(fleet, outcome=Outcome.FAILED, adapter=None, steps=0).result

    admitted = admit_update(failed.to_json().encode(), Asked(RUN, "alpha", 1, 0), UpdateBounds(fleet.plan().plans["alpha"], "f" * 64))

    assert admitted.outcome is Outcome.FAILED


def test_the_norm_is_that_of_the_increment_from_the_global_adapter(fleet: Fleet) -> None:
    tensors = fleet.tensors("alpha")
    plan = fleet.plan().plans["alpha"]
    unchanged = dict(tensors)
    for weight in plan.ranks:
        key = f"base_model.model.{weight}.lora_B.weight"
        unchanged[key] = tensors[key] / np.float32(plan.scale(weight))
    previous = fleet.candidate("alpha", tensors).source.data

    from_global = check_alpha(fleet, fleet.candidate("alpha", unchanged), max_norm=1e-3, previous=previous)
    from_zero = check_alpha(fleet, fleet.candidate("alpha", unchanged), max_norm=1e-3)

    assert from_global.accepted
    assert from_zero.reason == "NormTooLarge"


def test_the_norm_equals_that_of_all_dense_increments_together(fleet: Fleet) -> None:
    tensors, plan = fleet.tensors("alpha"), fleet.plan().plans["alpha"]
    squares = [np.linalg.norm(tensors[HEAD].astype(float)) ** 2]
    for weight in plan.ranks:
        a, b = (tensors[f"base_model.model.{weight}.lora_{x}.weight"].astype(float) for x in "AB")
        squares.append(np.linalg.norm(plan.scale(weight) * b @ a) ** 2)
    norm = sum(squares) ** 0.5

    assert check_alpha(fleet, fleet.candidate("alpha"), max_norm=norm * 1.0001).accepted
    assert check_alpha(fleet, fleet.candidate("alpha"), max_norm=norm * 0.9999).reason == "NormTooLarge"
