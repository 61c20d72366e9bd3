"""Floating-point operations (FLOP) of training steps, from the model's shapes and the lengths of the samples.

Counted are matrix products, at 2 FLOP for each multiplication and addition: of every linear layer, of its adapter, and of attention.
A frozen linear layer of p elements has 2·p per token in the forward pass, and 2·p for the gradient of its input where something below
it is trained; what is trained has as many for its own gradient. Where nothing is frozen, that is the 6·N + 12·L·H·Q·T of
arXiv 2310.03150. Tests hold the count to that of torch's `FlopCounterMode`, within 5 %.

Not counted are softmax, norms and activation functions, which are below 1 % in models of a usual width, and what a step computes twice to
save memory. Attention counts all pairs of positions, as kernels do that know no window.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fedpipe_trainer.contract import Objective, Preference, Seq2SeqLM
from fedpipe_trainer.data import Example
from fedpipe_trainer.model import Base, count_encoder_layers, layer_of, linear_shape

_PRODUCT: Final = 2.0
"""FLOP of a multiplication and an addition."""
_BOTH: Final = 3.0
"""Passes of an attention's two products: forward, and two products for the gradient of each."""
_ONLY_VALUES: Final = 1.5
"""The same where only the values need a gradient, and not what they are weighted by."""
_CROSS: Final = re.compile(r"(^|\.)(EncDecAttention|encoder_attn|crossattention)\.")
_KEYS_AND_VALUES: Final = re.compile(r"\.(k|v|k_proj|v_proj|key|value)$")
_READS_THE_LAYERS_INPUT: Final = re.compile(
    r"\.(([qkv]|query|key|value|qkv|in)(_proj|_lin)?|c_attn|query_key_value|Wqkv)$",
)
"""The queries, keys and values of a self-attention: in the lowest trained layer, nothing needs the gradient of their input."""
_BELOW_THE_LAYERS: Final = re.compile(r"(embeddings_project|project_in)$")
_VALUES_AND_OUTPUT: Final = re.compile(r"\.((v|o|out)(_proj|_lin)?|value|dense)$")
_IS_OF_ATTENTION: Final = re.compile(r"att", re.IGNORECASE)
_PARALLEL: Final = {"gpt_neox": "use_parallel_residual", "falcon": "parallel_attn", "gptj": "", "phi": "", "cohere": "", "cohere2": ""}
"""Model types whose attention and MLP read the same state, with the setting that says so; empty: all do."""
_DISENTANGLED: Final = frozenset({"deberta", "deberta-v2"})
"""Model types whose attention has further products, with positions, that depend on the batch."""
_EXPERTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Work:
    """The tokens of some samples, and the sums of products of lengths that attention takes."""

    samples: int = 0
    inputs: int = 0
    """Tokens of the inputs."""
    targets: int = 0
    """Tokens that the decoder of an encoder-decoder reads; 0 for other models."""
    input_pairs: int = 0
    """Σ n² over the inputs' lengths n."""
    target_pairs: int = 0
    """Σ m² over the targets' lengths m."""
    crossed_pairs: int = 0
    """Σ n·m."""

    def __add__(self, other: "Work") -> "Work":
        """The work of both."""
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def work_of(examples: Sequence[Example], objective: Objective) -> Work:
    """The work of these samples without padding."""
    inputs = [len(one.input_ids) for one in examples]
    return work_of_lengths(inputs, [len(one.labels) for one in examples] if isinstance(objective, Seq2SeqLM) else [])


def work_of_lengths(inputs: Sequence[int], targets: Sequence[int] = ()) -> Work:
    """The work of samples of these lengths; `targets` of an encoder-decoder only."""
    return Work(
        samples=len(inputs),
        inputs=sum(inputs),
        targets=sum(targets),
        input_pairs=sum(n * n for n in inputs),
        target_pairs=sum(m * m for m in targets),
        crossed_pairs=sum(n * m for n, m in zip(inputs, targets, strict=False)),
    )


def training_flop(base: Base, objective: Objective, ranks: Mapping[str, int], work: Work, *, computed: float = 1.0) -> float | None:
    """FLOP of the forward and backward passes over this work.

    Args:
        base: the base without adapters.
        objective: of a Preference they are not known, since the reference's pass may be read from a cache: None.
        ranks: of the adapters, by weight; 0 or left out: it has none.
        work: of the samples that are trained on.
        computed: the share of the forward passes that computed the layers below the lowest trained one, instead of reading their output
            from the cache.

    Returns:
        The FLOP; None where they are not known: also of a mixture of experts, of which a token passes through some, and of DeBERTa.
    """
    config = base.model.config
    if isinstance(objective, Preference) or config.model_type in _DISENTANGLED or _has_experts(config):
        return None
    model = _Model(base, ranks, computed)
    return _PRODUCT * (sum(model.linear(name, shape, work) for name, shape in _linear_layers(base.model)) + model.attention(work))


def _has_experts(config: PretrainedConfig) -> bool:
    return any(getattr(config.get_text_config(), name, None) for name in _EXPERTS)


def _is_parallel(config: PretrainedConfig) -> bool:
    setting = _PARALLEL.get(config.model_type)
    return setting is not None and (not setting or bool(getattr(config, setting, True)))


def _linear_layers(model: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, module in model.named_modules():
        if (shape := linear_shape(module)) is not None:
            yield name, shape


class _Model:
    """Which part of a model computes how often, and where its backward pass ends. Products are counted once, as p for a matrix of p."""

    def __init__(self, base: Base, ranks: Mapping[str, int], computed: float) -> None:
        self.model: PreTrainedModel = base.model
        self.config = base.model.config.get_text_config()
        self.ranks, self.computed = ranks, computed
        self.encoder_layers = count_encoder_layers(base.model)
        self.whole = {name.rpartition(".")[0] for name in base.head}
        trained = [name for name, rank in ranks.items() if rank] + [name for name in self.whole if _is_in_a_layer(name)]
        self.lowest = min((self._layer(name) for name in trained), default=self._layers())
        self.is_parallel = _is_parallel(self.config)
        lowest = [name for name, rank in ranks.items() if rank and self._layer(name) == self.lowest]
        self.scores_are_trained = any(not _VALUES_AND_OUTPUT.search(name) for name in lowest)
        self.pooled = _modules_of_pooled_states(base.model, self.whole)

    def linear(self, name: str, shape: tuple[int, int], work: Work) -> float:
        """Multiplications of a linear layer and of its adapter."""
        rows, size, rank = self._rows(name, work), shape[0] * shape[1], self.ranks.get(name, 0)
        layer = self._layer(name) if _is_in_a_layer(name) else -1 if _BELOW_THE_LAYERS.search(name) else self._layers()
        forward = self.computed if layer < self.lowest else 1.0
        needs_input_gradient = self._needs_input_gradient(name, layer)
        base = size * (forward + needs_input_gradient + (name in self.whole))
        adapter = rank * (shape[1] * (2 + needs_input_gradient) + shape[0] * 3)
        return float(rows * (base + adapter))

    def attention(self, work: Work) -> float:
        """Multiplications of all products of queries and keys, and of weights and values."""
        decoder = range(self.encoder_layers, self._layers())
        own = dict.fromkeys(range(self.encoder_layers), work.input_pairs)
        own |= dict.fromkeys(decoder, work.target_pairs if self.encoder_layers else work.input_pairs)
        crossed = work.crossed_pairs if self.encoder_layers else 0
        products = sum(pairs * self._attention_passes(layer) for layer, pairs in own.items())
        return 2 * self._attention_width() * (products + crossed * sum(self._attention_passes(layer) for layer in decoder))

    def _attention_passes(self, layer: int) -> float:
        """How often the two products of an attention are computed: in a backward pass twice, in the lowest layer as far as needed."""
        if layer < self.lowest:
            return self.computed
        return _ONLY_VALUES if layer == self.lowest and not self.scores_are_trained else _BOTH

    def _needs_input_gradient(self, name: str, layer: int) -> bool:
        """Whether something below this linear layer is trained, in the order of computation."""
        first_of_decoder = self.encoder_layers and layer == self.encoder_layers and self.lowest <= layer
        if _CROSS.search(name) and _KEYS_AND_VALUES.search(name):
            return self.lowest < self.encoder_layers
        if layer == self.lowest and self.is_parallel and not _IS_OF_ATTENTION.search(name):
            return False
        if layer == self.lowest or first_of_decoder:
            return not (_READS_THE_LAYERS_INPUT.search(name) and not _CROSS.search(name))
        return layer > self.lowest

    def _rows(self, name: str, work: Work) -> int:
        """How often it is computed: for each token of the input or of the target, or once for each sample."""
        if name in self.pooled:
            return work.samples
        if not self.encoder_layers:
            return work.inputs
        is_of_encoder = f".{name}".startswith((".encoder.", ".model.encoder."))
        reads_encoder = is_of_encoder or (_CROSS.search(name) and _KEYS_AND_VALUES.search(name))
        return work.inputs if reads_encoder else work.targets

    def _layer(self, name: str) -> int:
        return layer_of(name, self.encoder_layers)

    def _layers(self) -> int:
        config = self.config
        decoder = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", None) or 0
        return int(self.encoder_layers + decoder) if self.encoder_layers else int(config.num_hidden_layers)

    def _attention_width(self) -> int:
        heads: int = self.config.num_attention_heads
        own = getattr(self.config, "head_dim", None) or getattr(self.config, "d_kv", None)
        return heads * own if own else int(self.config.hidden_size)


def _is_in_a_layer(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _modules_of_pooled_states(model: PreTrainedModel, whole: Collection[str]) -> set[str]:
    """Of a classifier, those that compute one state for each sample; `score` of a decoder computes all positions, and one is taken."""
    prefix = f"{model.base_model_prefix}."
    is_classifier = not model.get_output_embeddings()
    outside = {name for name in whole if not name.startswith(prefix) and name != "score"} if is_classifier else set()
    return outside | {name for name, _ in model.named_modules() if "pooler" in name.split(".")[-2:]}
