"""bitsandbytes on the CPU: an evaluation must not take the gradients away from the training that follows.

On processors with AVX512-BF16 a 4-bit layer that ran once in eval mode repacks its weight for a kernel without a
backward pass. On others these tests pass whatever we do; CI runs on ones that have it.
"""

from collections.abc import Callable
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor

from fedpipe_trainer.adapters import GlobalUpdate, Site, attached
from fedpipe_trainer.contract import Bits, CausalLM
from fedpipe_trainer.data import IGNORED, Example
from fedpipe_trainer.evaluation import mean_loss
from fedpipe_trainer.model import facts, load
from fedpipe_trainer.steps import gradients, training_mode

Toy = Callable[[str], Path]
CAUSAL = CausalLM(prompt="{a}", response="{b}")
EXAMPLES = [Example(list(range(1, n + 1)), [IGNORED, *range(2, n + 1)]) for n in (12, 9)]


def first_step(folder: Path, bits: Bits, *, evaluated_before: bool) -> dict[str, Tensor]:
    base = load(folder, bits, CAUSAL)
    site = Site({weight.name: 2 for weight in facts(folder, CAUSAL, ()).weights}, scale=lambda _weight: 4.0)
    with attached(base, site, GlobalUpdate(), seed=1) as adapters:
        if evaluated_before:
            mean_loss(adapters.model, EXAMPLES, objective=CAUSAL, pad_id=base.pad_id, batch_size=2)
        with training_mode(adapters.model, checkpointing=False):
            gradients(EXAMPLES, CAUSAL, base, adapters=adapters, micro_batch=2)
        return {key: parameter.grad.clone() for key, parameter in adapters.trained.items() if parameter.grad is not None}


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_gradients_after_an_evaluation_are_those_of_a_model_never_evaluated(toy: Toy, bits: Bits) -> None:
    fresh = first_step(toy("llama"), bits, evaluated_before=False)
    evaluated = first_step(toy("llama"), bits, evaluated_before=True)

    first_layer = [key for key in fresh if "layers.0." in key and "lora_B" in key]
    assert len(first_layer) == 4
    assert all(fresh[key].abs().max() > 0 for key in first_layer)
    assert fresh.keys() == evaluated.keys()
    for key, gradient in fresh.items():
        assert torch.equal(gradient, evaluated[key]), key


def test_no_4_bit_layer_may_repack_its_weight(toy: Toy) -> None:
    layers = [module for module in load(toy("llama"), 4, CAUSAL).model.modules() if isinstance(module, bnb.nn.Linear4bit)]

    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
