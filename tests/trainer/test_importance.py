"""The importance of weights: on models whose important weights are known by construction, and against autograd."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from fedpipe_trainer.adapters import FROZEN_ADAPTER, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import Bits, CausalLM, ImportanceMethod, Objective, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import Example, encode
from fedpipe_trainer.model import dense_weight, facts, load, read_tokenizer
from fedpipe_trainer.profiling import gradient, importance
from fedpipe_trainer.profiling.importance import draw_batches, measure_importance
from fedpipe_trainer.profiling.subject import Subject

Toy = Callable[[str], Path]
CAUSAL = CausalLM(prompt="{a}", response="{b}", max_length=24)
CLASSES = SequenceClassification(labels=("left", "right"), max_length=24, text="a", label="b")
SEQ2SEQ = Seq2SeqLM(prompt="{a}", response="{b}", max_length=24)
LAYER_0, LAYER_1 = "model.layers.0.self_attn", "model.layers.1.self_attn"
BOTH = [ImportanceMethod.GRADIENT, ImportanceMethod.SENSITIVITY]
both_methods = pytest.mark.parametrize("method", BOTH)


def a_subject(folder: Path, objective: Objective = CAUSAL, bits: Bits = 32, *, targets: tuple[str, ...] = (), rows: int = 80) -> Subject:
    data = [{"a": f"turn {i} to the", "b": ("left", "right")[i % 2]} for i in range(rows)]
    weights = facts(folder, objective, targets).weights
    return Subject(load(folder, bits, objective), objective, weights, encode(data, objective, read_tokenizer(folder)), rank=4, seed=1)


def scored(method: ImportanceMethod, subject: Subject) -> tuple[dict[str, float], dict[str, float]]:
    result = measure_importance(method, subject, batch_size=8)
    assert result is not None
    assert result.problem == ""
    return result.first_half, result.second_half


def silence_layer(subject: Subject, prefix: str) -> None:
    """Make the attention of a layer add nothing to the model's output."""
    with torch.no_grad():
        parameter(subject, f"{prefix}.o_proj.weight").zero_()


def parameter(subject: Subject, name: str) -> nn.Parameter:
    return subject.base.model.get_parameter(name)


@both_methods
@pytest.mark.parametrize(("silent", "heard"), [(LAYER_0, LAYER_1), (LAYER_1, LAYER_0)])
def test_the_weights_of_the_only_layer_that_matters_are_found(toy: Toy, method: ImportanceMethod, silent: str, heard: str) -> None:
    subject = a_subject(toy("llama"), targets=("q_proj", "k_proj", "v_proj"))
    silence_layer(subject, silent)

    for scores in scored(method, subject):
        assert {weight for weight, score in scores.items() if score > 0} == {f"{heard}.{part}_proj" for part in "qkv"}


@both_methods
def test_a_weight_whose_output_counts_more_scores_higher(toy: Toy, method: ImportanceMethod) -> None:
    subject = a_subject(toy("llama"), targets=("q_proj", "k_proj", "v_proj"))
    with torch.no_grad():
        parameter(subject, f"{LAYER_0}.o_proj.weight").mul_(1e-3)

    for scores in scored(method, subject):
        assert max(scores, key=lambda weight: scores[weight]) == f"{LAYER_1}.v_proj"
        assert all(scores[f"{LAYER_0}.{part}_proj"] < scores[f"{LAYER_1}.{part}_proj"] for part in "qkv")


@both_methods
def test_the_two_halves_agree_on_a_model_without_chance_in_its_data(toy: Toy, method: ImportanceMethod) -> None:
    first, second = scored(method, a_subject(toy("llama")))

    assert spearmanr([first[weight] for weight in first], [second[weight] for weight in first]).statistic >= 0.8


@pytest.mark.parametrize(
    ("name", "objective"), [("llama", CAUSAL), ("gpt2", CAUSAL), ("mpnet", CLASSES), ("bert", CLASSES), ("t5", SEQ2SEQ)]
)
def test_the_gradient_of_each_weight_is_that_of_autograd(toy: Toy, name: str, objective: Objective) -> None:
    subject = a_subject(toy(name), objective)
    batch = subject.examples[:8]
    recorded = gradients_of(subject, batch)

    layers = {weight.name: subject.base.model.get_submodule(weight.name) for weight in subject.weights}
    with attach_adapters(subject.base, FROZEN_ADAPTER, AdapterTensors(), subject.seed) as adapters:
        for layer in layers.values():
            layer.weight.requires_grad_()
        gradient.backward(subject, adapters.model, batch)
        expected = {weight: layer.weight.grad.T if name == "gpt2" else layer.weight.grad for weight, layer in layers.items()}

    assert recorded.keys() == expected.keys()
    for weight, value in recorded.items():
        torch.testing.assert_close(value, expected[weight], rtol=1e-4, atol=1e-7)


def gradients_of(subject: Subject, batch: list[Example]) -> dict[str, torch.Tensor]:
    recorded: dict[str, torch.Tensor] = {}
    layers = {weight.name: subject.base.model.get_submodule(weight.name) for weight in subject.weights}
    with (
        attach_adapters(subject.base, FROZEN_ADAPTER, AdapterTensors(), subject.seed) as adapters,
        gradient.recorded_gradients(layers, lambda name, _layer, value: recorded.update({name: value})),
    ):
        gradient.backward(subject, adapters.model, batch)
    return recorded


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.25), (8, 0.1), (16, 0.05)])
def test_a_quantised_base_has_nearly_the_same_scores(toy: Toy, bits: Bits, tolerance: float) -> None:
    expected, _ = scored(ImportanceMethod.GRADIENT, a_subject(toy("llama")))
    actual, _ = scored(ImportanceMethod.GRADIENT, a_subject(toy("llama"), bits=bits))

    assert actual == {weight: pytest.approx(score, rel=tolerance) for weight, score in expected.items()}


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.2), (8, 0.02), (16, 0.01)])
def test_a_dequantised_weight_is_close_to_the_original(toy: Toy, bits: Bits, tolerance: float) -> None:
    exact, rounded = (a_subject(toy("llama"), bits=width).base.model.get_submodule(f"{LAYER_0}.q_proj") for width in (32, bits))

    difference = (dense_weight(rounded).float() - dense_weight(exact)).norm() / dense_weight(exact).norm()

    assert 0 < difference < tolerance


@both_methods
def test_scoring_leaves_the_base_as_it_was(toy: Toy, method: ImportanceMethod) -> None:
    subject = a_subject(toy("llama"))
    before = {name: value.clone() for name, value in subject.base.model.state_dict().items()}

    scored(method, subject)

    after = subject.base.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not [name for name, value in subject.base.model.named_parameters() if value.requires_grad or value.grad is not None]
    assert scored(method, subject) == scored(method, subject)


def test_without_a_method_there_are_no_scores_and_no_problem(toy: Toy) -> None:
    assert measure_importance(ImportanceMethod.NONE, a_subject(toy("llama")), batch_size=8) is None


# --- problems: each a sentence, none an exception


@contextmanager
def without_gradients(subject: Subject) -> Any:
    forward = subject.base.model.forward
    subject.base.model.forward = torch.no_grad()(forward)
    yield
    subject.base.model.forward = forward


def problem_of(method: ImportanceMethod, subject: Subject, batch_size: int = 8) -> str:
    result = measure_importance(method, subject, batch_size)
    assert result is not None
    assert (result.first_half, result.second_half) == ({}, {})
    assert "planning.importance to None" in result.problem
    return result.problem


@both_methods
def test_a_model_that_computes_without_gradients_is_a_problem(toy: Toy, method: ImportanceMethod) -> None:
    subject = a_subject(toy("llama"))
    with without_gradients(subject):
        assert "no target weight receives a gradient at 32 bits" in problem_of(method, subject)


@both_methods
def test_a_layer_that_computes_in_integers_is_a_problem(toy: Toy, method: ImportanceMethod) -> None:
    subject = a_subject(toy("llama"), targets=("o_proj",))
    for weight in subject.weights:
        subject.base.model.get_submodule(weight.name).forward = lambda x: x.detach().long()

    assert "compute in integers; use another base model" in problem_of(method, subject)


@both_methods
def test_scores_that_are_all_zero_are_a_problem(toy: Toy, method: ImportanceMethod) -> None:
    subject = a_subject(toy("llama"), targets=("q_proj", "k_proj", "v_proj"))
    silence_layer(subject, LAYER_0)
    silence_layer(subject, LAYER_1)

    assert "no target weight receives a gradient" in problem_of(method, subject)


@both_methods
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_a_problem(toy: Toy, method: ImportanceMethod, value: float) -> None:
    subject = a_subject(toy("llama"))
    with torch.no_grad():
        parameter(subject, "model.norm.weight").fill_(value)

    assert "is not finite at 32 bits; allow 32 in planning.bits" in problem_of(method, subject)


def test_a_score_that_no_result_may_contain_is_a_problem(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = a_subject(toy("llama"))
    name = subject.weights[0].name
    half = {weight.name: 1.0 for weight in subject.weights} | {name: 1e31}
    monkeypatch.setattr(gradient, "scores_of_halves", lambda *_: (half, half))

    assert f"that of {name} is 1e+31 at 32 bits, above 1e+30; use another base model" in problem_of(ImportanceMethod.GRADIENT, subject)


def test_a_weight_that_is_never_used_is_a_problem_that_names_it(toy: Toy) -> None:
    subject = a_subject(toy("llama"))
    unused = subject.weights[0].model_copy(update={"name": "lm_head_of_nothing"})
    subject.base.model.add_module("lm_head_of_nothing", nn.Linear(32, 32))

    problem = problem_of(ImportanceMethod.GRADIENT, replace(subject, weights=(*subject.weights, unused)))

    assert "lm_head_of_nothing receives no gradient; leave it out of planning.targetModules" in problem


@both_methods
def test_running_out_of_memory_is_a_problem(toy: Toy, monkeypatch: pytest.MonkeyPatch, method: ImportanceMethod) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(importance.gradient, "scores_of_halves", no_memory)
    monkeypatch.setattr(importance.sensitivity, "scores_of_halves", no_memory)

    assert "out of memory with 4 samples at once; allow a smaller batch" in problem_of(method, a_subject(toy("llama")), batch_size=4)


@pytest.mark.parametrize(("method", "needed"), [(ImportanceMethod.GRADIENT, 2), (ImportanceMethod.SENSITIVITY, 3)])
def test_a_site_with_too_few_samples_is_a_problem(toy: Toy, method: ImportanceMethod, needed: int) -> None:
    subject = a_subject(toy("llama"), rows=needed - 1)

    assert f"they need {needed} training samples, the site has {needed - 1}" in problem_of(method, subject)
    assert scored(method, a_subject(toy("llama"), rows=needed))[0]


# --- samples


def test_batches_are_of_different_samples_and_the_same_every_time(toy: Toy) -> None:
    subject = a_subject(toy("llama"))
    batches = draw_batches(subject, 32, 8, at_least=2)

    assert [len(batch) for batch in batches] == [8, 8, 8, 8]
    assert len({id(example) for batch in batches for example in batch}) == 32
    assert batches == draw_batches(subject, 32, 8, at_least=2)
    assert batches != draw_batches(replace(subject, seed=2), 32, 8, at_least=2)


def test_few_samples_are_split_into_smaller_batches(toy: Toy) -> None:
    assert [len(batch) for batch in draw_batches(a_subject(toy("llama"), rows=7), 32, 8, at_least=3)] == [2, 2, 2]
