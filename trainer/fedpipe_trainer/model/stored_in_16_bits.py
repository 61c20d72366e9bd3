"""Weights that are stored in bfloat16 and computed with in float32, on processors without bfloat16 arithmetic.

There, PyTorch multiplies bfloat16 matrices some twenty times slower than float32 ones, of which the conversion is a few per cent. So only
what is large stays in 16 bits: the weights of linear layers and the input embeddings. Each is converted where it is used, one layer at a
time, in the backward pass as well, so that memory holds no second base. Everything else, and all activations, are in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class _Product(torch.autograd.Function):
    """x·Wᵀ + b with W in 16 bits; the gradient of x alone, since the base is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ANN401 - the type has no public name
        """Compute y (…, d_out) from x (…, d_in) and W (d_out × d_in), of the type of x."""
        ctx.save_for_backward(weight)
        return functional.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401 - likewise
        """The gradient of x."""
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


class _StoredWeight:
    """A layer whose parameter `weight` stays in 16 bits; whoever asks for it gets a copy in float32."""

    _parameters: dict[str, Tensor]
    bias: Tensor | None

    @property
    def stored(self) -> Tensor:
        """The parameter itself."""
        return self._parameters["weight"]

    @property
    def weight(self) -> Tensor:
        """As some architectures read it, to multiply with a part of it."""
        return self.stored.float()

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """Of shape (…, d_out), in float32."""
        result: Tensor = _Product.apply(x.float(), weight, self.bias)  # type: ignore[no-untyped-call]
        return result


class LinearIn16Bits(_StoredWeight, nn.Linear):  # type: ignore[misc,override]  # its `weight` is an attribute there, and a property here
    """A frozen linear layer whose weight is converted at each use."""

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`, in float32."""
        return self.product(x, self.stored)


class Conv1DIn16Bits(_StoredWeight, Conv1D):  # type: ignore[misc]  # likewise
    """Likewise the layer of GPT-2, whose weight is d_in × d_out."""

    def forward(self, x: Tensor) -> Tensor:
        """As `Conv1D`, in float32."""
        return self.product(x, self.stored.T)


def compute_in_float32(model: PreTrainedModel) -> None:
    """Keep the large weights as they are and compute in float32. What is quantised, and what is in float32 already, stays as it is."""
    embeddings = model.get_input_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype is torch.bfloat16:
            module.__class__ = LinearIn16Bits
        elif type(module) is Conv1D and module.weight.dtype is torch.bfloat16:
            module.__class__ = Conv1DIn16Bits
        if module is embeddings:
            module.register_forward_hook(_to_float32)
        else:
            _convert_what_is_small(module)


def _convert_what_is_small(module: nn.Module) -> None:
    """The module's own tensors to float32, but a weight that is converted at each use."""
    stored = module.stored if isinstance(module, _StoredWeight) else None
    for parameter in module.parameters(recurse=False):
        if parameter is not stored and parameter.dtype is torch.bfloat16:
            parameter.data = parameter.data.float()
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.dtype is torch.bfloat16:
            setattr(module, name, buffer.float())


def _to_float32(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.float()
