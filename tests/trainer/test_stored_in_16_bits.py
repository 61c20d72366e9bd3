"""Weights that stay in 16 bits and are computed with in float32, as on processors without bfloat16 arithmetic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedpipe_trainer import device
from fedpipe_trainer.contract import CausalLM
from fedpipe_trainer.model import load
from fedpipe_trainer.model.architecture import target_weights
from fedpipe_trainer.model.stored_in_16_bits import Conv1DIn16Bits, LinearIn16Bits

CAUSAL = CausalLM(prompt="{a}", response="{b}", max_length=32)
Toy = Callable[[str], Path]


def layers() -> list[Any]:
    torch.manual_seed(0)
    return [nn.Linear(5, 7), nn.Linear(5, 7, bias=False), Conv1D(7, 5)]


@pytest.mark.parametrize("index", range(3))
def test_a_layer_gives_what_it_gives_with_its_rounded_weight_in_float32(index: int) -> None:
    exact, stored = layers()[index].requires_grad_(requires_grad=False), layers()[index].requires_grad_(requires_grad=False)
    exact.weight.data = exact.weight.data.bfloat16().float()
    stored.weight.data = stored.weight.data.bfloat16()
    stored.__class__ = Conv1DIn16Bits if index == 2 else LinearIn16Bits
    inputs = [torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    outputs = [layer(x) for layer, x in zip((exact, stored), inputs, strict=True)]
    for output in outputs:
        output.square().sum().backward()

    assert torch.equal(*outputs)
    assert inputs[0].grad is not None
    assert inputs[1].grad is not None
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    assert stored._parameters["weight"].dtype is torch.bfloat16


def test_no_weight_is_kept_in_float32_for_the_backward_pass(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "computes_bfloat16", lambda _device: False)
    base = load(toy("llama"), 16, CAUSAL)
    shapes = {module.stored.shape for module in base.model.modules() if isinstance(module, LinearIn16Bits)}
    kept: list[torch.Tensor] = []
    base.model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = base.model(input_ids=torch.tensor([[5, 6, 7]])).logits
    logits.sum().backward()

    assert logits.dtype is base.compute_dtype is torch.float32
    assert {tensor.dtype for tensor in kept if tensor.shape in shapes} == {torch.bfloat16}


def test_a_base_at_16_bits_takes_about_half_of_one_at_32_whatever_the_processor(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for arithmetic in (True, False):
        monkeypatch.setattr(device, "computes_bfloat16", lambda _device, value=arithmetic: value)
        sizes[arithmetic] = load(toy("llama"), 16, CAUSAL).memory_bytes
    whole = load(toy("llama"), 32, CAUSAL).memory_bytes

    assert sizes[True] <= sizes[False] <= 0.52 * whole


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_every_activation_is_in_float32_at_every_bit_width(toy: Toy, bits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "computes_bfloat16", lambda _device: False)
    base, found = load(toy("llama"), bits, CAUSAL), set()
    for module in base.model.modules():
        module.register_forward_hook(lambda _module, _inputs, output: found.add(output.dtype) if isinstance(output, torch.Tensor) else None)

    base.model(input_ids=torch.tensor([[5, 6, 7]]))

    assert found == {torch.float32}


def test_a_gpu_computes_with_bfloat16_as_it_is_stored() -> None:
    assert device.computes_bfloat16(torch.device("cuda"))


def test_the_weights_that_get_adapters_are_found_in_a_base_that_is_loaded_so(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "computes_bfloat16", lambda _device: False)
    loaded = [load(toy("gpt2"), bits, CAUSAL).model for bits in (16, 32)]

    assert target_weights(loaded[0], "gpt2", ()) == target_weights(loaded[1], "gpt2", ()) != ()
