"""FedProx's proximal term, which holds a site's training near what the round started from (Li et al., arXiv 1812.06127, eq. 2).

The site minimises F(w) + mu/2 · ‖w − w₀‖², where F is the loss of its data, w all parameters that it trains (the factors A and B, the head,
modules that are trained whole), and w₀ their values at the start of the round: the global adapter, truncated to the site's ranks.

The term's gradient mu · (w − w₀) does not depend on the data. So it is added once a step, to the finished gradient of all micro-batches and
devices, before that is clipped; and the losses that are reported stay those of the data.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from fedpipe_trainer.adapters import Adapters
from fedpipe_trainer.contract import Hyperparameters


@dataclass(frozen=True)
class ProximalTerm:
    """The term of one round. It keeps a copy of the trained parameters."""

    mu: float
    parameters: tuple[tuple[nn.Parameter, Tensor], ...]
    """Each trained parameter, and its value at the start of the round."""

    @classmethod
    def at_start(cls, hyper: Hyperparameters, adapters: Adapters) -> Self | None:
        """The term that holds the parameters near their present values; None, and no copy of them, if mu is 0.

        A training that is resumed attaches the same adapters as the attempt before, from the task's start. So the term is made of these,
        before the checkpoint's values replace them.
        """
        if not hyper.proximal_mu:
            return None
        return cls(hyper.proximal_mu, tuple((parameter, parameter.detach().clone()) for parameter in adapters.trainable.values()))

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add mu · (w − w₀) to the gradients, in the memory of one parameter more, when that of the step's activations is free again.

        A parameter that the step's data do not reach has no gradient, and stays as it is, as without the term.
        """
        for parameter, start in self.parameters:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=self.mu)
