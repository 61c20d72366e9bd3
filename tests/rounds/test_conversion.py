"""The API's types and the wire format's: every field of the spec that a trainer reads reaches it, and nothing else decides."""

from typing import Any, get_args

import pytest
from pydantic import BaseModel

from fedpipe_operator import conversion
from fedpipe_operator.api import (
    ApiModel,
    AttnImplementation,
    Bits,
    CausalLMTask,
    DataPolicy,
    EvaluationSpec,
    LearningRateSchedule,
    PreferenceTask,
    RunSelector,
    Scaling,
    Seq2SeqLMTask,
    SequenceClassificationTask,
    TrainingLosses,
    TrainingSpec,
)
from fedpipe_trainer import contract
from fedpipe_trainer.contract.task import Attention

TASKS: dict[type[ApiModel], tuple[dict[str, Any], ...]] = {
    SequenceClassificationTask: (
        {"text": "note", "label": "code", "labels": ("b", "a"), "max_length": 99},
        {"text_pair": "reply", "problem": "Regression"},
    ),
    CausalLMTask: (
        {"prompt": "{a}", "response": "{b}", "max_length": 98, "slot_pattern": "(x)"},
        {"format": "ShareGPT", "messages": "turns", "tools": "functions"},
        {"format": "Text", "text": "body", "packing": True},
    ),
    PreferenceTask: ({"prompt_column": "q", "chosen_column": "better", "rejected_column": "worse", "beta": 0.5, "max_length": 96},),
    Seq2SeqLMTask: ({"prompt": "{c}", "response": "{d}", "max_length": 97, "slot_pattern": "(y)"}, {"format": "Alpaca"}),
}
"""By task type: fields that are valid together, and others."""
TRAINING: dict[str, Any] = {
    "learning_rate": 0.003,
    "weight_decay": 0.1,
    "warmup_steps": 5,
    "max_grad_norm": 2.0,
    "proximal_mu": 0.01,
    "dropout": 0.2,
    "seed": 4,
}
PLANNED: dict[str, Any] = {
    "learning_rate_schedule": LearningRateSchedule.CONSTANT,
    "epochs": 3.0,
    "max_steps": 9,
    "alpha": 8.0,
    "scaling": Scaling.CLASSIC,
    "gradient_checkpointing": True,
}
"""Fields of `spec.training` that become part of the plan."""
EVALUATION: dict[str, Any] = {"max_samples": 50, "generations": 3, "max_new_tokens": 7, "bleu_tokenizer": "zh", "samples": 2}
POLICY: dict[str, Any] = {
    "runs": RunSelector(names=("r",), match_labels={"a": "b"}),
    "columns": ("note",),
    "task_types": ("CausalLM",),
    "labels": ("x", "y"),
    "max_labels": 5,
    "max_shown_rows": 3,
    "min_sites": 4,
    "local_baseline": True,
    "training_losses": TrainingLosses.MEAN,
}


def of_wire(value: BaseModel) -> dict[str, Any]:
    """The value's fields, and that each of them was passed."""
    assert value.model_fields_set == set(type(value).model_fields) - {"type"}
    return {name: getattr(value, name) for name in type(value).model_fields}


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    return {name: field.default for name, field in model.model_fields.items() if name != "type"}


@pytest.mark.parametrize("model", TASKS)
def test_every_field_of_a_task_reaches_the_trainer(model: type[Any]) -> None:
    assert {name for fields in TASKS[model] for name in fields} == set(model.model_fields) - {"type"}
    for fields in TASKS[model]:
        assert not [name for name, value in fields.items() if value == model.model_fields[name].default]

        task = model(**fields)

        sent = of_wire(conversion.objective(task))
        sent.pop("drops_other_labels", None)  # follows from `labels`: see below
        assert sent == task.model_dump()
        assert sent.items() >= fields.items()


def test_every_field_of_the_training_reaches_the_trainer_or_the_plan() -> None:
    assert set(TRAINING) | set(PLANNED) == set(TrainingSpec.model_fields)
    assert not [name for name, value in (TRAINING | PLANNED).items() if value == TrainingSpec.model_fields[name].default]

    assert of_wire(conversion.hyperparameters(TrainingSpec(**TRAINING, **PLANNED), 0.003)) == TRAINING


def test_the_learning_rate_is_the_plan_s() -> None:
    assert conversion.hyperparameters(TrainingSpec(learning_rate=0.003), 0.01).learning_rate == 0.01


def test_every_field_of_the_evaluation_reaches_the_trainer() -> None:
    assert set(EVALUATION) == set(EvaluationSpec.model_fields)
    assert not [name for name, value in EVALUATION.items() if value == EvaluationSpec.model_fields[name].default]

    assert of_wire(conversion.evaluation(EvaluationSpec(**EVALUATION))) == EVALUATION


def test_every_way_of_computing_attention_reaches_the_trainer() -> None:
    assert [conversion.attention(one) for one in (None, *AttnImplementation)] == [None, "eager", "sdpa"]
    assert get_args(Attention) == tuple(AttnImplementation)


def test_every_field_of_a_policy_reaches_the_trainer() -> None:
    assert set(POLICY) == set(DataPolicy.model_fields)
    assert not [name for name, value in POLICY.items() if value == DataPolicy.model_fields[name].default]

    found = of_wire(conversion.policy(DataPolicy(**POLICY)))

    assert of_wire(found.pop("runs")) == {"names": ("r",), "match_labels": {"a": "b"}}
    assert found == {name: value for name, value in POLICY.items() if name != "runs"}


def test_labels_that_the_first_round_fixed_replace_those_of_the_spec() -> None:
    task = SequenceClassificationTask(labels=("b", "a"))

    assert conversion.objective(task, ("a", "b", "c")).labels == ("a", "b", "c")  # type: ignore[union-attr]
    assert conversion.objective(CausalLMTask(prompt="{a}", response="{b}"), ("a",)).type == "CausalLM"


@pytest.mark.parametrize(
    ("declared", "fixed", "drops"),
    [
        (("b", "a"), ("b", "a"), False),
        (("b", "a"), None, False),
        ((), ("a", "b"), True),
        ((), None, False),
    ],
    ids=["declared, in a round", "declared, in a profile", "derived, in a round", "derived, in a profile"],
)
def test_rows_of_other_labels_are_dropped_only_where_the_labels_are_derived(
    declared: tuple[str, ...], fixed: tuple[str, ...] | None, drops: bool
) -> None:
    assert conversion.objective(SequenceClassificationTask(labels=declared), fixed).drops_other_labels is drops  # type: ignore[union-attr]


@pytest.mark.parametrize("choice", Scaling)
def test_every_scaling_has_the_trainer_s_of_the_same_name(choice: Scaling) -> None:
    assert conversion.scaling(choice).value == choice.value


def test_without_a_scaling_it_is_rslora() -> None:
    assert conversion.scaling(None) == contract.Scaling.RSLORA


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SequenceClassificationTask, contract.SequenceClassification),
        (CausalLMTask, contract.CausalLM),
        (Seq2SeqLMTask, contract.Seq2SeqLM),
        (PreferenceTask, contract.Preference),
        (EvaluationSpec, contract.Evaluation),
        (RunSelector, contract.RunSelector),
        (TrainingSpec, contract.Hyperparameters),
    ],
)
def test_a_field_that_both_sides_have_has_the_same_default(ours: type[BaseModel], theirs: type[BaseModel]) -> None:
    of_api, of_wire = defaults(ours), defaults(theirs)
    of_wire.pop("learning_rate", None)  # the spec's is None: then the sites test rates
    of_wire.pop("drops_other_labels", None)  # the trainer's alone

    assert {name: of_api[name] for name in of_wire} == of_wire


def test_a_policy_has_the_same_defaults_on_both_sides() -> None:
    assert conversion.policy(DataPolicy()) == contract.DataPolicy()


def test_every_default_of_the_spec_is_within_the_trainer_s_bounds_and_is_sent() -> None:
    """Also where the defaults should differ one day: the trainer's own never apply."""
    hyperparameters, evaluation = conversion.hyperparameters(TrainingSpec(), 1e-3), conversion.evaluation(EvaluationSpec())

    assert set(hyperparameters.model_dump(exclude_unset=True)) == set(contract.Hyperparameters.model_fields)
    assert set(evaluation.model_dump(exclude_unset=True)) == set(contract.Evaluation.model_fields)


def test_the_api_and_the_trainer_know_the_same_bit_widths() -> None:
    assert get_args(Bits) == get_args(contract.Bits)
