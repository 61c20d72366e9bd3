"""The functions of the contract: exit codes and the scale of an adapter."""

import pytest
from pydantic import ValidationError

from fedpipe_trainer.contract import ExitCode, FailureReason, Model, Scaling, scale_of

COMMIT, OTHER = "0" * 40, "1" * 40


@pytest.mark.parametrize("reason", FailureReason)
def test_every_failure_reason_has_a_different_exit_status(reason: FailureReason) -> None:
    others = [other.exit_code for other in FailureReason if other is not reason]

    assert reason.exit_code not in {ExitCode.OK, *others}


def test_exit_codes_are_final_when_the_input_is_wrong() -> None:
    assert {code for code in ExitCode if code.is_final} == {
        ExitCode.BAD_TASK,
        ExitCode.BAD_DATA,
        ExitCode.BAD_MODEL,
        ExitCode.OUT_OF_MEMORY,
        ExitCode.DIVERGED,
        ExitCode.POLICY_DENIED,
        ExitCode.NO_ACCELERATOR,
    }


@pytest.mark.parametrize(
    ("scaling", "rank", "scale"),
    [(Scaling.CLASSIC, 8, 2.0), (Scaling.CLASSIC, 16, 1.0), (Scaling.RSLORA, 16, 4.0), (Scaling.RSLORA, 64, 2.0), (Scaling.RSLORA, 0, 0.0)],
)
def test_the_scale_of_an_adapter_follows_from_alpha_and_rank(scaling: Scaling, rank: int, scale: float) -> None:
    assert scale_of(scaling, 16.0, rank) == scale


@pytest.mark.parametrize("source", ["hf://org/base", "hf://org/base@main", f"hf://org/base@{COMMIT}"])
def test_a_model_of_a_hub_may_have_the_commit_that_its_source_names(source: str) -> None:
    assert Model(source=source, commit=COMMIT).commit == COMMIT


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"hf://org/base@{OTHER}", f"hf://org/base@{OTHER} names another commit than {COMMIT}, which the run uses: start the run over"),
        ("file:///model", f"commit {COMMIT} is given, but file:///model does not come from a hub"),
    ],
)
def test_a_commit_that_contradicts_the_source_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Model(source=source, commit=COMMIT)
