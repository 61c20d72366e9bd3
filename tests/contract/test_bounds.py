"""Results come from sites: every number, text and list that the operator reads has bounds, so that none can break or blind it."""

from pathlib import Path
from typing import Any

import pytest

from fedpipe_trainer.contract import EvaluateResult, ProfileResult, TrainResult, Wire

FOLDER = Path(__file__).parent / "golden"
GOLDEN = ProfileResult.model_validate_json((FOLDER / "result-profile.json").read_text())
TRAINED = TrainResult.model_validate_json((FOLDER / "result-train.json").read_text())
EVALUATED = EvaluateResult.model_validate_json((FOLDER / "result-evaluate.json").read_text())
Q = "model.layers.0.self_attn.q_proj"
INFINITE, NAN = float("inf"), float("nan")


def changed(path: str, value: object, golden: Wire = GOLDEN) -> dict[str, Any]:
    """A golden result with another value at this path; a number in the path is a position in a list."""
    document = golden.model_dump(mode="json", by_alias=True)
    *parents, last = (int(part) if part.isdecimal() and part != "4" else part for part in path.split("/"))
    at: Any = document
    for part in parents:
        at = at[part]
    at[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("upBitsPerSecond", 0),
        ("downBitsPerSecond", 0),
        ("upBitsPerSecond", INFINITE),
        ("memoryBytesPerSecond", NAN),
        ("mfu", -0.1),
        ("mfu", 11),
        ("tokensPerJoule", 0),
        ("energySource", "a wall meter"),
        ("meanTokens", -1),
        ("meanTokens", INFINITE),
        ("longestTokens", -1),
        ("trainSamples", -1),
        ("trainSamples", 10**13),
        ("validationSamples", -1),
        ("skippedRows", -1),
        ("rank", -1),
        ("rank", 1025),
        ("memoryBytes", -1),
        ("memoryBytes", 10**19),
        ("runtimeBytes", -1),
        ("setupSeconds", -0.5),
        ("setupSeconds", INFINITE),
        ("loadPeakBytes/4", -1),
        ("baseBytes/4", -1),
        ("loadSeconds/4", NAN),
        ("firstStepSeconds/4", -1),
        ("firstStepSeconds/4", INFINITE),
        ("generation/4/promptSeconds", -1),
        ("generation/4/tokenSeconds", NAN),
        ("generation/4/sequenceTokenSeconds", INFINITE),
        ("generation", {"5": {"promptSeconds": 1, "tokenSeconds": 1, "sequenceTokenSeconds": 1}}),
        ("unsupported", {"8": "x" * 4097}),
        ("deviceMemoryBytes", -1),
        ("outOfMemory/4", -1),
        ("outOfMemory/4", 10**19),
        ("outOfMemory", {"5": 1}),
        ("labels", ["x" * 1025]),
        ("labels", [str(i) for i in range(10_001)]),
        ("throughput/0/batchSize", 0),
        ("throughput/0/length", 0),
        ("throughput/0/tokensPerSecond", 0),
        ("throughput/0/tokensPerSecond", 1e-305),
        ("throughput/0/tokensPerSecond", INFINITE),
        ("throughput/0/evaluateTokensPerSecond", NAN),
        ("throughput/0/peakMemoryBytes", -1),
        ("throughput/0/lowestLayer", 10_001),
        ("base/parameters", 0),
        ("base/quantisedParameters", -1),
        ("base/layers", 10_001),
        ("base/hiddenSize", 0),
        ("base/attentionHeads", 0),
        ("base/vocabularySize", 0),
        ("base/architecture", "x" * 257),
        ("base/mergedBytes", -1),
        ("base/head", {"score": [-2, 4]}),
        ("base/weights/0/name", ""),
        ("base/weights/0/name", "x" * 1025),
        ("base/weights/0/dOut", 0),
        ("importance/samples", -1),
        (f"importance/firstHalf/{Q}", -1.0),
        (f"importance/firstHalf/{Q}", INFINITE),
        (f"importance/secondHalf/{Q}", NAN),
        ("importance/problem", "x" * 1025),
        ("rangeTest/samples", -1),
        ("rangeTest/samples", 1001),
        ("rangeTest/lossBefore", -1),
        ("rangeTest/lossBefore", NAN),
        ("rangeTest/rates", [{"learningRate": (at + 1) / 100} for at in range(33)]),
        ("rangeTest/rates/0/learningRate", 0),
        ("rangeTest/rates/0/learningRate", 1.5),
        ("rangeTest/rates/0/loss", -0.1),
        ("rangeTest/rates/0/loss", 1e7),
        ("rangeTest/rates/0/loss", INFINITE),
        ("rangeTest/problem", "x" * 1025),
        ("cacheProblem", "x" * 4097),
    ],
)
def test_a_value_outside_of_its_bounds_is_refused(path: str, value: object) -> None:
    name = path.split("/", maxsplit=1)[0]

    with pytest.raises(ValueError, match=name):
        ProfileResult.model_validate(changed(path, value))


@pytest.mark.parametrize("golden", [GOLDEN, TRAINED, EVALUATED], ids=["profile", "update", "evaluation"])
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("measured/device", "x" * 254),
        ("measured/peakMemoryBytes", 10**400),
        ("measured/uploadedBytes", 10**19),
        ("measured/downloadedBytes", -1),
        ("measured/seconds", {"load": 1e308}),
        ("measured/seconds", {"load": NAN}),
        ("measured/seconds", {"load": -1}),
        ("measured/seconds", {"x" * 33: 1}),
        ("measured/seconds", {f"phase {number}": 1 for number in range(17)}),
    ],
)
def test_a_measurement_outside_of_its_bounds_is_refused(golden: Wire, path: str, value: object) -> None:
    with pytest.raises(ValueError, match="measured"):
        type(golden).model_validate(changed(path, value, golden))


@pytest.mark.parametrize(
    ("golden", "path", "value"),
    [
        (TRAINED, "steps", -1),
        (TRAINED, "steps", 10**13),
        (TRAINED, "samples", -5),
        (TRAINED, "resumedFromStep", -1),
        (TRAINED, "microBatchSize", -1),
        (TRAINED, "batchSize", 10**13),
        (TRAINED, "tokens", -1),
        (TRAINED, "skippedRows", -1),
        (TRAINED, "cacheHeld", -0.1),
        (TRAINED, "cacheHeld", 1.1),
        (TRAINED, "cacheHeld", NAN),
        (EVALUATED, "samples", -5),
        (EVALUATED, "targets", 10**400),
        (EVALUATED, "batchSize", -1),
        (EVALUATED, "metrics", {"x" * 65: 1.0}),
        (EVALUATED, "metrics", {f"metric {number}": 1.0 for number in range(65)}),
    ],
)
def test_a_number_of_a_training_or_an_evaluation_outside_of_its_bounds_is_refused(golden: Wire, path: str, value: object) -> None:
    with pytest.raises(ValueError, match=path):
        type(golden).model_validate(changed(path, value, golden))


def test_halves_that_score_different_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="firstHalf and secondHalf score different weights"):
        ProfileResult.model_validate(changed("importance/secondHalf", {"another": 1.0}))


@pytest.mark.parametrize("rates", [[0.001, 0.001], [0.003, 0.001]])
def test_learning_rates_that_are_not_ascending_are_refused(rates: list[float]) -> None:
    with pytest.raises(ValueError, match="not ascending, or one of them is there twice"):
        ProfileResult.model_validate(changed("rangeTest/rates", [{"learningRate": rate} for rate in rates]))


def test_losses_without_one_to_compare_them_with_are_refused() -> None:
    with pytest.raises(ValueError, match="no lossBefore to compare them with"):
        ProfileResult.model_validate(changed("rangeTest/lossBefore", None))


def test_the_profile_itself_is_accepted() -> None:
    assert ProfileResult.model_validate(changed("mfu", GOLDEN.mfu)) == GOLDEN
