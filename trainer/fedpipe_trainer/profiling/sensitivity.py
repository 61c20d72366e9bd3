"""The importance score Sensitivity: FedPipe's SVD on low-rank adapters with AdaLoRA's sensitivity (arXiv 2303.10512, eq. 8 to 12).

Every target weight gets an update in the form of an SVD, ΔW = P Λ Q. Sensitivity of an element w: I = |w · dL/dw|, smoothed
over the steps, Ī = β₁ Ī + (1 − β₁) I, and its uncertainty Ū = β₂ Ū + (1 − β₂) |I − Ī|; s(w) = Ī · Ū. Score of a triplet:
S_j = s(λ_j) + mean s(P_·j) + mean s(Q_j·); score of a weight: the mean of its S_j.

At the start Λ is 0, and so is every score; after one step it is not. AdaLoRA draws P and Q at random and pulls them to
orthonormality with a penalty; here they begin orthonormal, and the few steps of a warm-up hardly change that. Both halves
share the steps, but each smooths over its own batches only.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from fedpipe_trainer.adapters import FROZEN_ADAPTER, AdapterTensors, attach_adapters
from fedpipe_trainer.data import Example
from fedpipe_trainer.profiling.gradient import Scores, backward
from fedpipe_trainer.profiling.subject import Subject

SAMPLES: Final = 72
"""9 steps of 8: one with Λ = 0, which is not counted, then 4 for each half."""
FEWEST_BATCHES: Final = 3
"""One with Λ = 0, and one for each half."""
_RANK: Final = 8
_BETA_1: Final = 0.85
_BETA_2: Final = 0.85
_LEARNING_RATE: Final = 1e-3


class SvdAdapter(nn.Module):
    """ΔW = P Λ Q of one weight, with P (d_out × r) and Q (r × d_in) orthonormal and Λ (r) zero."""

    def __init__(self, d_out: int, d_in: int, generator: torch.Generator) -> None:
        super().__init__()
        rank = min(_RANK, d_out, d_in)
        self.p = nn.Parameter(torch.linalg.qr(torch.randn(d_out, rank, generator=generator)).Q)
        self.q = nn.Parameter(torch.linalg.qr(torch.randn(d_in, rank, generator=generator)).Q.T.contiguous())
        self.lambda_ = nn.Parameter(torch.zeros(rank))

    def forward(self, x: Tensor) -> Tensor:
        """ΔW·x in float32, for x of shape (…, d_in)."""
        return (x.float() @ self.q.T * self.lambda_) @ self.p.T


@dataclass
class Smoothed:
    """Ī and Ū of all elements of one parameter."""

    mean: Tensor
    uncertainty: Tensor

    def add(self, sensitivity: Tensor) -> None:
        """Add the sensitivity of one more batch."""
        self.mean.mul_(_BETA_1).add_(sensitivity, alpha=1 - _BETA_1)
        self.uncertainty.mul_(_BETA_2).add_((sensitivity - self.mean).abs(), alpha=1 - _BETA_2)

    @property
    def score(self) -> Tensor:
        """s(w) = Ī · Ū."""
        return self.mean * self.uncertainty


@dataclass
class WeightSensitivity:
    """The smoothed sensitivities of one weight's P, Λ and Q."""

    adapter: SvdAdapter
    smoothed: dict[str, Smoothed] = field(default_factory=dict)

    def add_batch(self) -> None:
        """Add the current gradients; a parameter without a gradient has none to add."""
        for name, parameter in self.adapter.named_parameters():
            if parameter.grad is not None:
                zeros = partial(torch.zeros_like, parameter.data)
                self.smoothed.setdefault(name, Smoothed(zeros(), zeros())).add((parameter.data * parameter.grad).abs())

    @property
    def score(self) -> float | None:
        """The mean of S_j over the triplets; None without any gradient."""
        if not self.smoothed:
            return None
        triplets = self.smoothed["lambda_"].score + self.smoothed["p"].score.mean(dim=0) + self.smoothed["q"].score.mean(dim=1)
        return float(triplets.mean())


def scores_of_halves(subject: Subject, batches: Sequence[Sequence[Example]]) -> tuple[Scores, Scores]:
    """Score by weight after a warm-up on all batches, on those of odd and of even number; the first batch only makes Λ nonzero."""
    generator = torch.Generator().manual_seed(subject.seed)
    adapters = {weight.name: SvdAdapter(weight.d_out, weight.d_in, generator).to(subject.base.device) for weight in subject.weights}
    halves = [{name: WeightSensitivity(adapter) for name, adapter in adapters.items()} for _ in range(2)]
    with attach_adapters(subject.base, FROZEN_ADAPTER, AdapterTensors(), subject.seed) as attached, _added(attached.model, adapters):
        parameters = [*attached.trainable.values(), *(p for adapter in adapters.values() for p in adapter.parameters())]
        optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=0.0)
        for number, batch in enumerate(batches):
            backward(subject, attached.model, batch)
            for weight in halves[number % 2].values() if number else ():
                weight.add_batch()
            optimizer.step()
            optimizer.zero_grad()
    first, second = (_scores(half) for half in halves)
    return first, second


def _scores(half: Mapping[str, WeightSensitivity]) -> Scores:
    return {name: score for name, weight in half.items() if (score := weight.score) is not None}


@contextmanager
def _added(model: nn.Module, adapters: Mapping[str, SvdAdapter]) -> Iterator[None]:
    """Add the output of each adapter to that of its weight in this context."""
    handles = [model.get_submodule(name).register_forward_hook(partial(_add_output, adapter)) for name, adapter in adapters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_output(adapter: SvdAdapter, _layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401 - a module returns anything
    is_base = not torch.is_grad_enabled()  # of a preference: the reference has no adapter
    if is_base or not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    return output + adapter(inputs[0]).to(output.dtype)
