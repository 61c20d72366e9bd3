"""bitsandbytes on the CPU: an evaluation must not make the gradients of a later training zero.

On processors with AVX512-BF16, a 4-bit layer that ran once in eval mode repacks its weight for a kernel without a
backward pass. On other processors these tests always pass; CI runs on processors with AVX512-BF16.
"""

from collections.abc import Callable
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor

from fedpipe_trainer.adapters import AdapterSpec, AdapterTensors, attach_adapters
from fedpipe_trainer.contract import Bits, CausalLM
from fedpipe_trainer.data import IGNORED, Example
from fedpipe_trainer.evaluation import mean_loss
from fedpipe_trainer.model import facts, load
from fedpipe_trainer.steps import compute_gradients, training_mode

Toy = Callable[[str], Path]
CAUSAL = CausalLM(prompt="{a}", response="{b}")
EXAMPLES = [Example(list(range(1, n + 1)), [IGNORED, *range(2, n + 1)]) for n in (12, 9)]


def first_step(folder: Path, bits: Bits, *, evaluate_before: bool) -> dict[str, Tensor]:
    base = load(folder, bits, CAUSAL)
    spec = AdapterSpec({weight.name: 2 for weight in facts(folder, CAUSAL, ()).weights}, scale=lambda _weight: 4.0)
    with attach_adapters(base, spec, AdapterTensors(), seed=1) as adapters:
        if evaluate_before:
            mean_loss(adapters.model, EXAMPLES, objective=CAUSAL, pad_id=base.pad_id, batch_size=2)
        with training_mode(adapters.model, checkpointing=False):
            compute_gradients(EXAMPLES, CAUSAL, base, adapters=adapters, micro_batch=2)
        return {key: parameter.grad.clone() for key, parameter in adapters.trainable.items() if parameter.grad is not None}


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_gradients_are_the_same_with_and_without_an_evaluation_before(toy: Toy, bits: Bits) -> None:
    expected = first_step(toy("llama"), bits, evaluate_before=False)
    actual = first_step(toy("llama"), bits, evaluate_before=True)

    first_layer = [key for key in expected if "layers.0." in key and "lora_B" in key]
    assert len(first_layer) == 4
    assert all(expected[key].abs().max() > 0 for key in first_layer)
    assert expected.keys() == actual.keys()
    for key, gradient in expected.items():
        assert torch.equal(gradient, actual[key]), key


def test_no_4_bit_layer_repacks_its_weight(toy: Toy) -> None:
    layers = [module for module in load(toy("llama"), 4, CAUSAL).model.modules() if isinstance(module, bnb.nn.Linear4bit)]

    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
