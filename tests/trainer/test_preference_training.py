"""DPO: the loss against its formula, the reference whatever is attached, and rounds that learn preferences."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from toy_training import Q0, V1, a_training_task, make_runtime

from fedpipe_trainer import reference
from fedpipe_trainer.adapters import FROZEN_ADAPTER, Adapters, AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.adapters.wire import Factors, write_tensors
from fedpipe_trainer.contract import (
    DataPolicy,
    EvaluateTask,
    Evaluation,
    GlobalAdapter,
    Hyperparameters,
    Preference,
    TrainResult,
    TrainTask,
    WeightShape,
)
from fedpipe_trainer.data import IGNORED, Example, collate
from fedpipe_trainer.data.pairs import join_answers
from fedpipe_trainer.evaluation import evaluation_mode
from fedpipe_trainer.losses import reward_margins, summed_loss, summed_preference_loss
from fedpipe_trainer.metrics import preference_metrics
from fedpipe_trainer.model import Base, clear_cache, load
from fedpipe_trainer.profiling.gradient import scores_of_halves
from fedpipe_trainer.profiling.subject import Subject
from fedpipe_trainer.recipes import evaluate, train
from fedpipe_trainer.steps import compute_gradients, training_mode
from fedpipe_trainer.transfer import describe

Toy = Callable[[str], Path]
BETA = 2.0
PAIRS = Preference(prompt_column="a", chosen_column="b", rejected_column="c", beta=BETA, max_length=24)
RANKS = {Q0: 4, V1: 2}
SIDES = [
    (Example([1, 2, 3, 4, 5], [IGNORED, IGNORED, 3, 4, 5]), Example([1, 2, 9], [IGNORED, IGNORED, 9])),
    (Example([7, 8, 9], [IGNORED, 8, 9]), Example([7, 30, 31, 32, 33, 34], [IGNORED, 30, 31, IGNORED, 33, 34])),
    (Example([5, 6], [IGNORED, 6]), Example([5, 7], [IGNORED, 7])),
]
JOINED = [join_answers(*sides) for sides in SIDES]


def random_adapter(base: Base, seed: int = 0) -> AdapterTensors:
    """A global adapter that changes what the model says."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {weight: base.model.get_submodule(weight).weight.shape for weight in RANKS}  # type: ignore[union-attr]  # linear layers
    made = {
        weight: Factors(5 * torch.randn(3, d_in, generator=draw), 5 * torch.randn(d_out, 3, generator=draw))
        for weight, (d_out, d_in) in shapes.items()
    }
    return AdapterTensors(weights=made)


def log_probability(model: Any, answer: Example) -> Tensor:
    """Of the answer's targets after what stands before them: one row without padding, all logits."""
    logits = model(input_ids=torch.tensor([answer.input_ids])).logits[0].double()
    chosen = [(at - 1, label) for at, label in enumerate(answer.labels) if label != IGNORED]
    return torch.stack([logits[at].log_softmax(-1)[int(label)] for at, label in chosen]).sum()


def dpo(policy: Any, base: Any) -> Tensor:
    """The mean of eq. 7 of arXiv 2305.18290, as it is written there."""
    losses = []
    for chosen, rejected in SIDES:
        with torch.no_grad():
            references = [log_probability(base, one) for one in (chosen, rejected)]
        ratios = [log_probability(policy, one) - ref for one, ref in zip((chosen, rejected), references, strict=True)]
        losses.append(-torch.log(1 / (1 + torch.exp(-(BETA * ratios[0] - BETA * ratios[1])))))
    return torch.stack(losses).mean()


@contextmanager
def attached(base: Base, start: AdapterTensors, ranks: dict[str, int] = RANKS, dropout: float = 0.0) -> Iterator[Adapters]:
    spec = AdapterSpec(ranks=ranks, scale=lambda _weight: 2.0, dropout=dropout) if ranks else FROZEN_ADAPTER
    with attach_adapters(base, spec, start, seed=1) as adapters:
        yield adapters


def batch_of(base: Base) -> dict[str, Tensor]:
    return collate(JOINED, PAIRS, base.pad_id)


@pytest.fixture
def base(toy: Toy) -> Base:
    return load(toy("llama"), 32, PAIRS)


@pytest.fixture
def untouched(toy: Toy) -> Any:
    """The same base in another object, which nothing is ever attached to."""
    return load(toy("llama"), 32, PAIRS).model


@pytest.mark.parametrize("ranks", [RANKS, {}, {Q0: 1}], ids=["trained", "frozen", "some frozen"])
def test_the_loss_is_that_of_dpo_with_the_base_as_reference(base: Base, untouched: Any, ranks: dict[str, int]) -> None:
    with attached(base, random_adapter(base), ranks) as adapters, torch.no_grad():
        loss, targets = summed_loss(adapters.model, batch_of(base), PAIRS)
        expected = dpo(adapters.model, untouched)

    assert targets == len(SIDES)
    assert float(loss) / targets == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(expected) - math.log(2)) > 0.01


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_gradients_are_those_of_the_formula_for_every_micro_batch(base: Base, untouched: Any, micro_batch: int) -> None:
    with attached(base, random_adapter(base)) as adapters:
        loss, _ = compute_gradients(JOINED, PAIRS, base, adapters=adapters, micro_batch=micro_batch)
        found = {name: one.grad.clone() for name, one in adapters.trainable.items() if one.grad is not None}
        adapters.model.zero_grad()
        expected = dpo(adapters.model, untouched)
        expected.backward()  # type: ignore[no-untyped-call]  # torch's

        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        assert found.keys() == adapters.trainable.keys()
        for name, one in adapters.trainable.items():
            assert one.grad is not None
            assert torch.allclose(found[name], one.grad, rtol=1e-3, atol=1e-6)


def test_the_reference_has_the_bases_values_of_modules_that_are_trained_whole(toy: Toy, untouched: Any) -> None:
    base = load(toy("llama"), 32, PAIRS, modules_to_save=("embed_tokens", "norm"))
    moved = {name: value + 0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2)) for name, value in base.whole.items()}
    with attached(base, AdapterTensors(random_adapter(base).weights, moved)) as adapters:
        loss, _ = compute_gradients(JOINED, PAIRS, base, adapters=adapters, micro_batch=2)
        found = {name: one.grad.clone() for name, one in adapters.trainable.items() if one.grad is not None}
        adapters.model.zero_grad()
        expected = dpo(adapters.model, untouched)
        expected.backward()  # type: ignore[no-untyped-call]  # torch's

        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        assert abs(float(expected.detach()) - math.log(2)) > 0.01
        assert all(torch.equal(base.model.get_parameter(name), value) for name, value in moved.items())
        for name, one in adapters.trainable.items():
            assert one.grad is not None
            assert torch.allclose(found[name], one.grad, rtol=1e-3, atol=1e-6)


@given(rewards=st.lists(st.floats(-500, 500), min_size=1, max_size=20))
def test_the_loss_of_margins_is_softplus_of_their_negative_and_never_overflows(rewards: list[float]) -> None:
    expected = sum(max(-one, 0) + math.log1p(math.exp(-abs(one))) for one in rewards)

    assert float(summed_preference_loss(torch.tensor(rewards, dtype=torch.float64))) == pytest.approx(expected)


@given(margins=st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_turning_every_pair_round_turns_accuracy_and_margin_round(margins: list[float]) -> None:
    found, turned = preference_metrics(margins), preference_metrics([-one for one in margins])

    assert found["preferenceAccuracy"] + turned["preferenceAccuracy"] == pytest.approx(1)
    assert found["rewardMargin"] == pytest.approx(-turned["rewardMargin"])


def test_metrics_of_margins() -> None:
    assert preference_metrics([2.0, -1.0, 0.5, 0.0]) == {"preferenceAccuracy": 0.625, "rewardMargin": 0.375}


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_an_adapter_that_changes_nothing_prefers_neither(toy: Toy, bits: Any) -> None:
    quantised = load(toy("llama"), bits, PAIRS)

    with attached(quantised, AdapterTensors()) as adapters, evaluation_mode(adapters.model):
        assert reward_margins(adapters.model, batch_of(quantised), BETA).tolist() == [0.0] * len(SIDES)


@pytest.mark.parametrize("bits", [4, 16])
def test_a_quantised_base_learns_after_its_reference_was_asked(toy: Toy, bits: Any) -> None:
    quantised = load(toy("llama"), bits, PAIRS)

    with attached(quantised, random_adapter(load(toy("llama"), 32, PAIRS))) as adapters:
        compute_gradients(JOINED, PAIRS, quantised, adapters=adapters, micro_batch=3)
        norms = [float(one.grad.norm()) for one in adapters.trainable.values() if one.grad is not None]

    assert len(norms) == 2 * len(RANKS)
    assert min(norms) > 0


def test_the_reference_has_no_dropout_draws_nothing_and_leaves_the_model_as_it_was(toy: Toy) -> None:
    base = load(toy("gpt2"), 32, PAIRS)
    weight = "transformer.h.1.attn.c_attn"
    expected = reference.reference_margins(base.model, batch_of(base))

    with (
        attached(base, AdapterTensors(), {weight: 4}, dropout=0.5) as adapters,
        training_mode(base.model, checkpointing=True, lowest_layer=1),
    ):
        before = [(name, module.training) for name, module in base.model.named_modules()]
        torch.manual_seed(3)
        found = reference.reference_margins(base.model, batch_of(base))
        drawn = torch.rand(1)

        assert torch.equal(found, expected)
        assert [(name, module.training) for name, module in base.model.named_modules()] == before
        assert {name for name, one in base.model.named_parameters() if one.requires_grad} == {
            f"{weight}.lora_{factor}.trained.weight" for factor in "AB"
        }
        assert {id(one) for one in adapters.trainable.values()} == {id(one) for one in base.model.parameters() if one.requires_grad}
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


def test_the_importance_of_weights_is_scored_on_pairs(base: Base) -> None:
    weights = tuple(WeightShape(name=name, d_out=32, d_in=32, layer=at) for at, name in enumerate(RANKS))
    subject = Subject(base, PAIRS, weights, JOINED, rank=2, seed=0)

    first, second = scores_of_halves(subject, [JOINED[:1], JOINED[1:]])

    assert first.keys() == second.keys() == RANKS.keys()
    assert min(*first.values(), *second.values()) > 0


# A whole task.


def preference_task(model: Path, folder: Path, *, objective: Preference = PAIRS, **changed: Any) -> TrainTask:
    """40 pairs: after a row's turn the model shall go left, and never right."""
    hyper = {"hyperparameters": Hyperparameters(learning_rate=0.02, dropout=0.1)}
    made = a_training_task(model, folder, {Q0: 4, V1: 4}, objective=objective, **hyper | {"steps": 20} | changed)
    rows = [{"a": f"turn {at % 7} to the ", "b": "left", "c": "right"} for at in range(40)]
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return made


def run_training(task: TrainTask, folder: Path, cache: str = "cache") -> tuple[TrainResult, bytes]:
    runtime = make_runtime(folder / "scratch")
    runtime.cache = folder / cache
    clear_cache()
    result = train.run(task, runtime)
    return result, (folder / "store" / "adapter.safetensors").read_bytes()


def with_plan(task: TrainTask, **changed: Any) -> TrainTask:
    return task.model_copy(update={"plan": task.plan.model_copy(update=changed)})


@pytest.fixture
def reference_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each pass of the reference."""
    counted: list[int] = []
    original = reference.margins

    def margins(model: Any, batch: dict[str, Tensor]) -> Tensor:
        counted.append(len(batch["input_ids"]))
        return original(model, batch)

    monkeypatch.setattr(reference, "margins", margins)
    return counted


def global_adapter(toy: Toy, folder: Path) -> GlobalAdapter:
    """Of an earlier round, which trained both layers."""
    path = folder / "global.safetensors"
    found = random_adapter(load(toy("llama"), 32, PAIRS))
    tensors = {f"base_model.model.{weight}.lora_{name}.weight": one for weight, pair in found.weights.items() for name, one in _named(pair)}
    write_tensors(tensors, path)
    artifact = describe(path)
    return GlobalAdapter(url=path.as_uri(), sha256=artifact.sha256, size=artifact.size)


def _named(factors: Factors) -> list[tuple[str, Tensor]]:
    return [("A", factors.a), ("B", factors.b)]


def test_a_site_learns_to_prefer_the_chosen_answers(toy: Toy, tmp_path: Path) -> None:
    result, _ = run_training(preference_task(toy("llama"), tmp_path, validate_samples=8), tmp_path)

    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert result.validation_loss is not None
    assert result.validation_loss < result.losses[-1] + 0.1 < math.log(2)
    assert (result.samples, result.skipped_rows) == (80, 0)
    assert result.tokens == 80 * sum(len(f"turn 0 to the {answer}>") for answer in ("left", "right"))


def test_the_reference_is_computed_once_for_each_batch_of_a_site(toy: Toy, tmp_path: Path, reference_passes: list[int]) -> None:
    task = preference_task(toy("llama"), tmp_path)

    first, first_bytes = run_training(task, tmp_path)
    assert sum(reference_passes) == 2 * 40  # two epochs, one pass
    again, again_bytes = run_training(task, tmp_path)
    assert sum(reference_passes) == 2 * 40
    elsewhere, other_bytes = run_training(task, tmp_path, "other-cache")

    assert first.losses == again.losses == elsewhere.losses
    assert first_bytes == again_bytes == other_bytes


def test_a_reference_of_other_bits_is_not_that_of_this_base(toy: Toy, tmp_path: Path, reference_passes: list[int]) -> None:
    run_training(preference_task(toy("llama"), tmp_path), tmp_path)
    run_training(preference_task(toy("llama"), tmp_path, bits=16), tmp_path)

    assert sum(reference_passes) == 2 * 2 * 40


def test_a_cache_that_cannot_be_written_costs_time_only(toy: Toy, tmp_path: Path) -> None:
    expected = run_training(preference_task(toy("llama"), tmp_path), tmp_path)[1]
    (tmp_path / "no-folder").touch()

    assert run_training(preference_task(toy("llama"), tmp_path), tmp_path, "no-folder")[1] == expected


def test_cached_activations_are_those_of_the_policy_and_not_of_the_reference(toy: Toy, tmp_path: Path) -> None:
    fields = {"global_adapter": global_adapter(toy, tmp_path), "round": 2, "checkpoint_read": None}
    task = preference_task(toy("llama"), tmp_path, **fields)
    shallow = with_plan(task, ranks={V1: 4}, lowest_layer=1)

    plain, expected = run_training(shallow, tmp_path)
    cached, first = run_training(with_plan(shallow, cache_activations=True), tmp_path, "cache-2")
    again, second = run_training(with_plan(shallow, cache_activations=True), tmp_path, "cache-2")

    assert (cached.cache_hits, cached.cache_misses, again.cache_hits) == (10, 10, 20)
    assert plain.losses == cached.losses == again.losses
    assert expected == first == second


def test_checkpointing_changes_no_loss(toy: Toy, tmp_path: Path) -> None:
    task = preference_task(toy("llama"), tmp_path)

    plain, _ = run_training(task, tmp_path)
    saved, _ = run_training(with_plan(task, gradient_checkpointing=True), tmp_path)

    assert saved.losses == pytest.approx(plain.losses, rel=1e-4)


def evaluation_task(task: TrainTask, **changed: Any) -> EvaluateTask:
    fields = task.model_dump(include={"run", "site", "round", "attempt", "model", "result", "objective", "data", "contributors"})
    asked = {"bits": 32, "batch_size": 4, "evaluation": Evaluation(max_samples=12, samples=2), "policy": DataPolicy(max_shown_rows=2)}
    return EvaluateTask(**fields | asked | changed)


def test_an_evaluation_counts_pairs_and_shows_what_the_model_prefers(toy: Toy, tmp_path: Path) -> None:
    task = preference_task(toy("llama"), tmp_path)
    asked = {"evaluation": Evaluation(max_samples=2, samples=2), "global_adapter": global_adapter(toy, tmp_path)}

    result = evaluate.run(evaluation_task(task, **asked), make_runtime(tmp_path / "scratch"))

    assert set(result.metrics) == {"preferenceAccuracy", "rewardMargin"}
    assert (result.samples, result.targets, result.skipped_rows) == (2, 2, 0)
    assert [(one.text, one.expected) for one in result.examples] == [(f"turn {at} to the ", "left") for at in range(2)]
    assert {one.predicted for one in result.examples} <= {"left", "right"}
    assert [one.predicted for one in result.examples].count("left") == 2 * result.metrics["preferenceAccuracy"]


def test_the_base_alone_prefers_nothing_and_is_asked_once_in_all_rounds(toy: Toy, tmp_path: Path, reference_passes: list[int]) -> None:
    task = evaluation_task(preference_task(toy("llama"), tmp_path))
    runtime = make_runtime(tmp_path / "scratch")

    first, again = (evaluate.run(task, runtime) for _ in range(2))

    assert first.metrics == again.metrics == {"preferenceAccuracy": 0.5, "rewardMargin": 0.0}
    assert first.loss == pytest.approx(math.log(2))
    assert [one.predicted for one in first.examples] == ["", ""]
    assert sum(reference_passes) == 2 * 12


def test_a_row_that_is_no_sample_is_not_shown_with_the_margin_of_another(toy: Toy, tmp_path: Path) -> None:
    task = evaluation_task(preference_task(toy("llama"), tmp_path), evaluation=Evaluation(max_samples=200, samples=2))
    rows = [json.loads(line) for line in Path(task.data.validation).read_text().splitlines()] * 5
    alike = {"a": "turn", "b": f"{'left ' * 20}a", "c": f"{'left ' * 20}b"}
    Path(task.data.validation).write_text("\n".join(map(json.dumps, [alike, *rows])))

    result = evaluate.run(task, make_runtime(tmp_path / "scratch"))

    assert result.samples == 200 - 1
    assert [one.text for one in result.examples] == ["turn 0 to the "]
