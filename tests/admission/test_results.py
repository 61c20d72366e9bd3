"""Admission: what fits its task becomes a value; whatever else comes is refused with a reason, in one line that quotes little."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_operator.admission import (
    MAX_RESULT_BYTES,
    Asked,
    EvaluationBounds,
    RefusalReason,
    Refused,
    RefusedError,
    UpdateBounds,
    admit_evaluation,
    admit_export,
    admit_profile,
    admit_update,
)
from fedpipe_operator.reconcile.tasks import _batches_to_profile
from fedpipe_trainer.contract import Bits, RunRef

RUN = RunRef(namespace="default", name="toy", uid="1")
HEADER: Final = {
    "run": {"namespace": "default", "name": "toy", "uid": "1"},
    "site": "ward",
    "round": 1,
    "attempt": 0,
    "outcome": "Completed",
    "measured": {},
}
CLASSIFIES = EvaluationBounds(has_one_target=True, metrics={"accuracy", "macroF1"}, max_length=16)
WRITES = EvaluationBounds(has_one_target=False, metrics={"perplexity", "bleu", "rougeL", "slotErrorRate"}, max_length=16)
COMPARES = EvaluationBounds(has_one_target=True, metrics={"preferenceAccuracy", "rewardMargin"}, max_length=32)
MEASURES = EvaluationBounds(has_one_target=True, metrics={"mse", "pearson", "spearman"}, max_length=16)
EVALUATION: Final = {**HEADER, "kind": "evaluate", "samples": 20, "targets": 20, "loss": 0.7, "metrics": {"accuracy": 0.8, "macroF1": 0.7}}
GENERATION: Final = {
    **HEADER,
    "kind": "evaluate",
    "samples": 20,
    "targets": 200,
    "loss": 0.0,
    "metrics": {"perplexity": 1.0, "bleu": 40.0, "rougeL": 0.5, "slotErrorRate": 0.1},
}
BASE: Final = {
    "architecture": "bert",
    "parameters": 10,
    "quantisedParameters": 1,
    "layers": 1,
    "hiddenSize": 8,
    "intermediateSize": 8,
    "attentionHeads": 1,
    "vocabularySize": 9,
    "weights": [{"name": "q", "dOut": 8, "dIn": 8}],
}
PROFILE: Final = {**HEADER, "kind": "profile", "round": 0, "fingerprint": "f" * 64, "base": BASE, "labels": ["ill", "well\u00a0enough"]}


def evaluation(value: Any, bounds: EvaluationBounds = CLASSIFIES) -> Any:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return admit_evaluation(data, Asked(RUN, "ward", 1, 0), bounds)


def profile(value: Any) -> Any:
    return admit_profile(json.dumps(value).encode(), Asked(RUN, "ward", 0, 0))


def refused(admit: Callable[..., Any], *arguments: Any) -> Refused:
    with pytest.raises(RefusedError) as error:
        admit(*arguments)
    return error.value.refused


def test_a_figure_that_is_only_shown_and_that_no_training_has_is_left_out() -> None:
    failure = {"reason": "Diverged", "message": "the loss is not finite"}
    shown = {"trainLoss": 1e308, "validationLoss": -0.1, "tokensPerSecond": 1e16, "mfu": 0.4}
    update = {**HEADER, "kind": "train", "outcome": "Failed", "failure": failure, **shown}

    found = admit_update(json.dumps(update).encode(), Asked(RUN, "ward", 1, 0), UpdateBounds(None, ""))

    assert (found.train_loss, found.validation_loss, found.tokens_per_second, found.mfu) == (None, None, None, 0.4)


def test_an_evaluation_of_another_base_model_is_refused() -> None:
    of_the_run = replace(CLASSIFIES, fingerprint="f" * 64)

    assert evaluation(EVALUATION | {"fingerprint": "f" * 64}, of_the_run).samples == EVALUATION["samples"]
    for other in ({"fingerprint": "e" * 64}, {}):
        assert refused(evaluation, EVALUATION | other, of_the_run).reason == RefusalReason.WRONG_BASE


def test_what_fits_is_admitted() -> None:
    assert evaluation(EVALUATION).metrics == {"accuracy": 0.8, "macroF1": 0.7}
    assert evaluation(GENERATION, WRITES).targets == 200
    assert profile(PROFILE).labels == ("ill", "well\u00a0enough")
    assert admit_export(json.dumps({**HEADER, "kind": "export", "site": "", "round": 7}).encode(), Asked(RUN, "", None, 0)).round == 7


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"metrics": {"accuracy": 2.0}}, "accuracy: found 2.0, expected"),
        ({"metrics": {"accuracy": -0.1}}, "accuracy: found -0.1"),
        ({"metrics": {"perplexity": 1.0}}, "it has another metric than accuracy, macroF1"),
        ({"samples": 10**12, "targets": 10**12}, "samples: found 1000000000000, expected 0 to 1e+06"),
        ({"targets": 10**12}, "targets: found 1000000000000, expected 20"),
        ({"loss": -1.0}, "loss: found -1.0, expected 0 to 1e+06"),
        ({"loss": 1e30}, "loss: found 1e+30"),
        ({"examples": [{"text": "", "expected": "", "predicted": ""}] * 21}, "number of rows shown: found 21, expected 0 to 20"),
        ({"software": {"torch\u0000": "2"}}, "control characters"),
        ({"software": {"torch": "\ud800"}}, "control characters"),
        ({"software": {"torch": "\u202e"}}, "control characters"),
        ({"software": {"torch": "x" * 9000}}, "a text of 9000 characters, expected at most 8192"),
    ],
)
def test_an_evaluation_with_an_impossible_figure_or_text_is_refused(changes: dict[str, Any], text: str) -> None:
    found = refused(evaluation, {**EVALUATION, **changes})

    assert (found.reason, text in found.message) == ("Implausible", True), found.message


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"targets": 321}, "targets: found 321, expected 0 to 320"),
        ({"metrics": {"perplexity": 2.0}}, "perplexity: found 2, expected 1, the exponential of the loss"),
        ({"metrics": {"bleu": 101.0}}, "bleu: found 101.0"),
        ({"metrics": {"rougeL": 1.1}}, "rougeL: found 1.1"),
        ({"metrics": {"accuracy": 0.5}}, "it has another metric than"),
    ],
)
def test_the_evaluation_of_a_language_model_is_held_to_its_own_metrics(changes: dict[str, Any], text: str) -> None:
    found = refused(evaluation, {**GENERATION, **changes}, WRITES)

    assert (found.reason, text in found.message) == ("Implausible", True), found.message


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"preferenceAccuracy": 1.1}},
        {"metrics": {"preferenceAccuracy": -0.1}},
        {"metrics": {"rewardMargin": 1e30}},
        {"metrics": {"rewardMargin": -1e30}},
        {"metrics": {"accuracy": 0.5}},
        {"targets": 40},
    ],
)
def test_the_evaluation_of_pairs_is_held_to_its_own_metrics_and_to_one_target_a_pair(changes: dict[str, Any]) -> None:
    fitting = {**EVALUATION, "metrics": {"preferenceAccuracy": 0.8, "rewardMargin": -3.5}}

    assert evaluation(fitting, COMPARES).metrics == fitting["metrics"]
    assert refused(evaluation, fitting | changes, COMPARES).reason == RefusalReason.IMPLAUSIBLE


@pytest.mark.parametrize("metrics", [{"mse": -1}, {"mse": 1e300}, {"pearson": 1.1}, {"spearman": -1.1}, {"accuracy": 0.5}])
def test_the_evaluation_of_a_regression_is_held_to_its_own_metrics(metrics: dict[str, float]) -> None:
    right = {"mse": 2.5, "pearson": -1.0, "spearman": 1.0}

    assert evaluation(EVALUATION | {"metrics": right}, MEASURES).metrics == right
    with pytest.raises(RefusedError):
        evaluation(EVALUATION | {"metrics": right | metrics}, MEASURES)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": {"namespace": "default", "name": "toy", "uid": "2"}}, "WrongRun"),
        ({"round": 2}, "WrongRound"),
        ({"site": "other"}, "WrongSite"),
        ({"attempt": 1}, "WrongAttempt"),
    ],
)
def test_a_result_of_another_task_is_refused_whatever_its_kind(changes: dict[str, Any], reason: str) -> None:
    assert refused(evaluation, {**EVALUATION, **changes}).reason == reason
    assert refused(profile, {**PROFILE, **changes}).reason == reason


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-320", "9" * 5000, "1." + "0" * 5000], ids=lambda text: text[:12]
)
def test_a_number_that_is_not_finite_or_has_no_inverse_is_refused_in_any_field(number: str) -> None:
    for field in ("loss", "samples"):
        text = json.dumps({**EVALUATION, field: "here"}).replace('"here"', number)

        assert refused(evaluation, text.encode()).reason == "Implausible"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"base": None}, "it says nothing of the base model"),
        ({"fingerprint": None}, "it says nothing of the base model"),
        ({"base": {**BASE, "weights": BASE["weights"] * 2}}, "it names a weight twice"),  # type: ignore[operator]
        ({"labels": ["a", "a"]}, "it has a label twice"),
        ({"labels": ["\u001b[31m"]}, "control characters"),
        (
            {"importance": {"method": "Gradient", "samples": 9, "firstHalf": {"x": 1.0}, "secondHalf": {"x": 1.0}}},
            "it scores 1 weights that its base model does not have",
        ),
        ({"longestTokens": 5, "meanTokens": 6.0}, "meanTokens: found 6.0, expected 0 to 5"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(changes: dict[str, Any], text: str) -> None:
    found = refused(profile, {**PROFILE, **changes})

    assert (found.reason, text in found.message) == ("Implausible", True), found.message


def test_a_profile_has_no_more_measurements_than_any_honest_one() -> None:
    """The seconds of planning grow with the square of their number, and a plan of few sites is made by the operator itself."""
    point = {"bits": 4, "batchSize": 1, "length": 8, "tokensPerSecond": 1.0, "evaluateTokensPerSecond": 1.0, "peakMemoryBytes": 0}
    depths = 2
    honest = len(get_args(Bits)) * len(_batches_to_profile(tuple(range(1, 17)))) * depths

    assert profile(PROFILE | {"throughput": [point] * honest})
    assert refused(profile, PROFILE | {"throughput": [point] * 200}).reason == "Unreadable"


def test_a_result_of_more_bytes_than_its_kind_can_need_is_refused_before_it_is_parsed() -> None:
    assert refused(evaluation, b"[" * (MAX_RESULT_BYTES + 1)).reason == "TooLarge"


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"a": 1, "a": 2}', json.dumps({**EVALUATION, "more": 1}).encode()]
)
def test_bytes_that_are_no_result_are_unreadable(data: bytes) -> None:
    assert refused(evaluation, data).reason == "Unreadable"


def test_messages_and_rows_are_shown_without_what_a_terminal_would_obey() -> None:
    shown = {"text": "a\u001b[31m\nb", "expected": "x" * 9000, "predicted": "\u202ec"}

    (example,) = evaluation({**EVALUATION, "examples": [shown]}).examples

    assert (example.text, len(example.expected), example.predicted) == (
        "a\N{REPLACEMENT CHARACTER}[31m\nb",
        8192,
        "\N{REPLACEMENT CHARACTER}c",
    )


def test_a_refusal_quotes_no_label_and_no_more_than_a_line() -> None:
    found = refused(profile, {**PROFILE, "labels": ["canary", "canary"]})
    assert "canary" not in found.message

    found = refused(evaluation, {**EVALUATION, "site": "\n" + "x" * 5000})
    assert len(found.message) < 300
    assert "\n" not in found.message


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_admitted_or_refused_and_nothing_else(data: bytes) -> None:
    assert refused(evaluation, data).reason in {"Unreadable", "Implausible"}


_JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(_JSON, st.sampled_from(("loss", "metrics", "examples", "failure", "software", "measured")))
def test_any_json_in_any_field_is_admitted_or_refused_and_nothing_else(value: Any, field: str) -> None:
    with suppress(RefusedError):
        evaluation({**EVALUATION, field: value})
