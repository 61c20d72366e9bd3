"""Depth: what lies below the lowest trained layer has no backward pass, and is computed in evaluation mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from toy_training import CAUSAL, Q0, V1, a_training_task, make_runtime

from fedpipe_trainer import steps
from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.adapters.wire import Factors
from fedpipe_trainer.contract import FailureReason, Seq2SeqLM, SequenceClassification
from fedpipe_trainer.data import IGNORED, Example
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model import layers_of, load
from fedpipe_trainer.recipes import train

Toy = Callable[[str], Path]
CLASSES: Final = SequenceClassification(text="a", label="b", labels=("left", "right"), max_length=24)
SEQ2SEQ: Final = Seq2SeqLM(prompt="{a}", response="{b}", max_length=24)
EXAMPLES: Final = [Example(list(range(1, n)), [IGNORED] * 2 + list(range(3, n))) for n in (20, 5, 9, 12)]
LABELLED: Final = [Example(list(range(1, n)), [n % 2]) for n in (20, 5, 9, 12)]
MODELS: Final = [
    ("llama", CAUSAL, EXAMPLES, "model.layers.{}.self_attn.q_proj"),
    ("gpt2", CAUSAL, EXAMPLES, "transformer.h.{}.attn.c_proj"),
    ("bert", CLASSES, LABELLED, "bert.encoder.layer.{}.attention.self.query"),
    ("mpnet", CLASSES, LABELLED, "mpnet.encoder.layer.{}.attention.attn.q"),
]


def a_residual(weight: str) -> AdapterTensors:
    """A global adapter with a component in this weight, which a site that does not train the weight keeps frozen."""
    generator = torch.Generator().manual_seed(0)
    return AdapterTensors({weight: Factors(*(torch.randn(shape, generator=generator) for shape in ((2, 32), (32, 2))))})


@pytest.mark.parametrize(("model", "checkpointing"), [(model, checkpointing) for model in MODELS for checkpointing in (False, True)][:-1])
def test_nothing_below_the_lowest_layer_is_kept_for_a_backward_pass(toy: Toy, model: tuple[Any, ...], *, checkpointing: bool) -> None:
    name, objective, examples, weight = model
    base = load(toy(name), 32, objective)
    seen: dict[str, tuple[bool, bool]] = {}

    def note(part: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: object, output: Any) -> None:
            states: Tensor = output[0] if isinstance(output, tuple) else output
            seen[part] = (module.training, states.requires_grad)

        return hook

    spec = AdapterSpec({weight.format(1): 2}, scale=lambda _weight: 1.0)
    with attach_adapters(base, spec, a_residual(weight.format(0)), seed=0) as adapters:
        parts = {"embedding": base.model.get_input_embeddings(), **dict(zip(("lower", "upper"), layers_of(base.model), strict=True))}
        hooks = [module.register_forward_hook(note(part)) for part, module in parts.items()]
        with steps.training_mode(adapters.model, checkpointing=checkpointing, lowest_layer=1):
            steps.compute_gradients(examples, objective, base, adapters=adapters, micro_batch=4)
        for hook in hooks:
            hook.remove()
        gradients = {key: parameter.grad for key, parameter in adapters.trainable.items()}

    assert seen == {"embedding": (False, False), "lower": (False, False), "upper": (True, True)}
    assert all(gradient is not None for gradient in gradients.values())
    assert not any(module.training for module in base.model.modules())


def test_the_gradients_are_those_of_a_backward_pass_through_all_layers(toy: Toy) -> None:
    base = load(toy("llama"), 32, CAUSAL)

    def gradients(ranks: dict[str, int], lowest_layer: int) -> dict[str, Tensor]:
        with attach_adapters(base, AdapterSpec(ranks, scale=lambda _weight: 1.0), AdapterTensors(), seed=0) as adapters:
            with steps.training_mode(adapters.model, checkpointing=False, lowest_layer=lowest_layer):
                steps.compute_gradients(EXAMPLES, CAUSAL, base, adapters=adapters, micro_batch=4)
            return {key: parameter.grad.clone() for key, parameter in adapters.trainable.items() if parameter.grad is not None}

    deep, shallow = gradients({Q0: 2, V1: 2}, 0), gradients({V1: 2}, 1)

    assert all(V1 in key for key in shallow)
    assert all(torch.equal(deep[key], gradient) for key, gradient in shallow.items())


def test_only_the_head_is_trained_if_no_layer_is(toy: Toy, tmp_path: Path) -> None:
    task = a_training_task(toy("bert"), tmp_path, {}, objective=CLASSES)
    task = task.model_copy(update={"plan": task.plan.model_copy(update={"lowest_layer": 2})})

    result = train.run(task, make_runtime(tmp_path / "scratch"))

    assert result.ranks == {}
    assert {key.split(".")[-2] for key in result.tensors} == {"classifier", "dense"}, "the head and its pooler"


CONTRADICTIONS: Final = [
    (
        "llama",
        CAUSAL,
        {Q0: 4, V1: 4},
        {"lowest_layer": 1},
        f"lowestLayer is 1, but it gives a rank to {Q0}, which",
    ),
    ("llama", CAUSAL, {V1: 4}, {"lowest_layer": 3}, "lowestLayer is 3, but the model has only 2 layers"),
    ("llama", CAUSAL, {}, {"lowest_layer": 2}, "so none of its 2 layers is trained, but there is no head"),
    ("llama", CAUSAL, {V1: 4}, {"cache_activations": True}, "caches activations, but its lowestLayer is 0"),
    ("t5", SEQ2SEQ, {"decoder.block.1.layer.0.SelfAttention.q": 4}, {"lowest_layer": 3, "cache_activations": True}, "an encoder-decoder"),
    ("t5", SEQ2SEQ, {"decoder.block.0.layer.0.SelfAttention.q": 4}, {"lowest_layer": 3}, "which belongs to a lower layer"),
    ("mpnet", CLASSES, {}, {"gradient_checkpointing": True}, "of a mpnet model: set gradientCheckpointing to false"),
]


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_plan_that_contradicts_itself_or_the_model_is_refused(toy: Toy, tmp_path: Path, case: tuple[Any, ...]) -> None:
    name, objective, ranks, changed, message = case
    task = a_training_task(toy(name), tmp_path, ranks, objective=objective)

    with pytest.raises(TaskFailed, match=message) as failed:
        train.run(task.model_copy(update={"plan": task.plan.model_copy(update=changed)}), make_runtime(tmp_path / "scratch"))

    assert failed.value.reason is FailureReason.BAD_TASK


def test_the_layers_of_a_decoder_follow_those_of_its_encoder(toy: Toy) -> None:
    model = load(toy("t5"), 32, SEQ2SEQ).model

    assert layers_of(model) == [*model.get_submodule("encoder.block"), *model.get_submodule("decoder.block")]  # type: ignore[misc]
