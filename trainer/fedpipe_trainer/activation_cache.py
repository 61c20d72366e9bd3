"""Computes the layers below the lowest trained one once for each micro-batch, and then reads their output from the site's volume.

What enters the lowest trained layer depends on the input and on what is frozen, and on nothing else: everything below is
computed in evaluation mode (`model.layers`). FedAdapter (arXiv 2205.10162) calls this activation caching. A step that
trains k of L layers then costs about k/L of a step that trains all.

The cache works from outside of the model: layers and embeddings get a `forward` that returns the cached states on a hit, so
masks, positions and the order of layers remain the architecture's own business. A first pass of a few tokens compares the
model's output with and without the cache; an architecture in which they differ is trained without it.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpipe_trainer import peak_memory
from fedpipe_trainer.activation_store import FOLDER, ActivationStore
from fedpipe_trainer.adapters import AdapterTensors
from fedpipe_trainer.evaluation import evaluation_mode
from fedpipe_trainer.model import Base, layer_of, layers_of

_FORMAT: Final = 1
"""Increased when cached values must not be used any more."""
_LIBRARIES: Final = ("torch", "transformers", "bitsandbytes")
_PROBE: Final = torch.arange(16).reshape(2, 8)
"""Token ids of the first pass; every vocabulary has that many."""

_LOG = logging.getLogger(__name__)


@dataclass
class CacheCounts:
    """Forward passes whose lower layers were read from the cache, and those that computed them."""

    hits: int = 0
    misses: int = 0
    held: float = 1.0
    """The share of the different passes whose lower layers' output is in the cache at the end."""
    problem: str = ""
    """Why the cache did not work, and what to do; empty if it did."""

    def add(self, others: Sequence["CacheCounts"]) -> None:
        """Add those of other processes, whose shares count by their passes."""
        held = sum(one.held * (one.hits + one.misses) for one in (self, *others))
        self.hits += sum(one.hits for one in others)
        self.misses += sum(one.misses for one in others)
        self.held = held / (self.hits + self.misses) if self.hits + self.misses else self.held
        self.problem = next((one.problem for one in (self, *others) if one.problem), "")


class CachePlan(Protocol):
    """The part of a plan that says what is cached."""

    @property
    def cache_activations(self) -> bool:
        """Whether anything is."""

    @property
    def lowest_layer(self) -> int:
        """The layer whose inputs are."""


class CachePlace(Protocol):
    """Where it is cached."""

    @property
    def cache(self) -> Path:
        """The folder of the site's cache."""

    @property
    def activation_cache_bytes(self) -> int | None:
        """What it may hold of activations; None: half of its free space."""


@contextmanager
def cached_activations(base: Base, plan: CachePlan, start: AdapterTensors, place: CachePlace) -> Iterator[CacheCounts]:
    """In this context, training steps read what enters the plan's lowest layer from the cache, if the plan says so.

    Args:
        base: the base with its adapters attached; not yet in training mode.
        plan: `check_depth` has accepted it.
        start: the global adapter, whose weights below the lowest layer are frozen and active.
        place: its folder is used, up to its limit for activations.
    """
    counts = CacheCounts()
    if not plan.cache_activations:
        yield counts
        return
    lower = _LowerPart(base.model, layers_of(base.model)[: plan.lowest_layer], base.device)
    with lower.intercepted():
        if not lower.can_be_skipped():
            kind = base.model.config.model_type
            counts.problem = f"activations of a {kind} model cannot be cached, which costs time only"
            _LOG.warning("%s: the lower layers are computed in every pass", counts.problem)
            yield counts
            return
        key = cache_key(base, plan.lowest_layer, start)
        with closing(ActivationStore(place.cache / FOLDER, key, place.activation_cache_bytes)) as store:
            lower.store = store
            try:
                yield counts
            finally:
                counts.hits, counts.misses, counts.held, counts.problem = store.hits, store.misses, store.held, store.problem


def cache_key(base: Base, lowest_layer: int, start: AdapterTensors) -> str:
    """A hash of all that the states depend on beside the tokens: model, frozen adapter below the layer, number format, software, device."""
    digest = hashlib.sha256()
    attention = base.model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    libraries = [version(name) for name in _LIBRARIES]
    facts = [_FORMAT, base.fingerprint, base.bits, sorted(base.whole), base.compute_dtype, attention, lowest_layer, *libraries]
    # Sums are split among threads, so their last bits depend on how many there are; and on the processor's instructions.
    place = [base.device.type, peak_memory.device_name(), torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    digest.update(repr([*map(str, facts), *map(str, place)]).encode())
    for weight, factors in sorted(start.weights.items()):
        if layer_of(weight, 0) < lowest_layer:
            for factor in (factors.a, factors.b):
                digest.update(f"\n{weight} {tuple(factor.shape)} ".encode())
                digest.update(factor.contiguous().numpy().data)
    return digest.hexdigest()[:32]


class _LowerPart:
    """The layers below the lowest trained one and the embeddings before them, whose forward passes can be skipped."""

    def __init__(self, model: PreTrainedModel, layers: list[nn.Module], device: torch.device) -> None:
        self.store: ActivationStore | None = None
        self._model, self._layers, self._device = model, layers, device
        self._embeddings = _embeddings(model, layers[0])
        self._outputs: dict[nn.Module, Any] = {}
        self._name = ""
        self._cached: Tensor | None = None

    @contextmanager
    def intercepted(self) -> Iterator[None]:
        """In this context, the forward passes of the model can be skipped up to the last lower layer, and its output is kept."""
        with ExitStack() as stack:
            for module in [self._embeddings, *self._layers]:
                stack.enter_context(_replaced_forward(module, self._forward_of(module)))
            hook = self._model.register_forward_pre_hook(self._begin_pass, with_kwargs=True)
            stack.callback(hook.remove)
            yield

    def can_be_skipped(self) -> bool:
        """Whether the model's output is the same, bit for bit, if the lower part is skipped."""
        ids = _PROBE.to(self._device)
        with evaluation_mode(self._model):
            expected = self._logits(ids)
            states = _hidden(self._outputs[self._layers[-1]])
            if not all(_is_state(output) for output in self._outputs.values()):
                return False
            self._cached = states
            try:
                return torch.equal(expected, self._logits(ids))
            except (RuntimeError, TypeError, ValueError, AttributeError):  # the architecture passes on more than these states
                return False
            finally:
                self._cached = None

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return logits

    def _begin_pass(self, _model: nn.Module, _inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Look up the states of this pass's tokens. A pass without gradients is of the base alone, which has other states."""
        if self.store is None:
            return
        self._name, self._cached = "", None
        if not torch.is_grad_enabled():
            return
        self._name = name_of(*(named[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in named))
        cached = self.store.read(self._name, _hidden(self._outputs[self._layers[-1]]).dtype)
        self._cached = None if cached is None else cached.to(self._device)

    def _forward_of(self, module: nn.Module) -> Callable[..., Any]:
        original = module.forward

        def forward(*inputs: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever the architecture passes to its layers
            if self._cached is not None:
                return _like(self._outputs[module], self._cached)
            output = original(*inputs, **named)
            if self.store is None:
                self._outputs[module] = output
            elif self._name and module is self._layers[-1]:
                self.store.write(self._name, _hidden(output))
            return output

        return forward


def _embeddings(model: PreTrainedModel, layer: nn.Module) -> nn.Module:
    """The outermost module that holds the token embeddings and not this layer."""
    tokens = model.get_input_embeddings()
    holders = (module for module in model.modules() if tokens in (inner := set(module.modules())) and layer not in inner)
    return next(holders)


@contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    own = module.__dict__.get("forward")  # libraries that move modules between devices replace it, too
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _hidden(output: Any) -> Tensor:  # noqa: ANN401 - what a layer of any architecture returns
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _is_state(output: Any) -> bool:  # noqa: ANN401 - what a layer of any architecture returns
    """Whether a layer returned hidden states of shape (batch, length, width), alone or first in a tuple with nothing else in it."""
    rest = output[1:] if isinstance(output, tuple) else ()
    states = _hidden(output)
    return isinstance(states, Tensor) and states.ndim == 3 and all(other is None for other in rest)  # noqa: PLR2004 - see the docstring


def _like(output: Any, states: Tensor) -> Any:  # noqa: ANN401 - what a layer of any architecture returns
    return (states, *output[1:]) if isinstance(output, tuple) else states


def name_of(*tensors: Tensor) -> str:
    """The name of what is computed from these tensors, the first of which has their shape."""
    digest = hashlib.sha256(str(tuple(tensors[0].shape)).encode())
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]
