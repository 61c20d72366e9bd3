"""What a training step keeps for its backward pass: the part of the memory model that grows with batch and length.

The form is the usual one for a transformer (Korthikanti et al., arXiv 2205.05198, eq. 2), with separate terms for
the hidden and the intermediate width since gated MLPs are not 4·h wide. `calibration` scales it to the site.
"""

from collections.abc import Mapping
from typing import Final

from fedpipe_trainer.contract import BaseModelFacts, Bits

# Kept elements per token and layer. Above the paper's 9·h + 2·i because LoRA takes its inputs in fp32 next to the
# 16-bit ones, and because norms compute in fp32; found on SmolLM2-135M and MPNet-base, 16 bits, CPU.
_HIDDEN_ELEMENTS: Final = 16
_INTERMEDIATE_ELEMENTS: Final = 5
_SCORE_ELEMENTS: Final = 5
"""Per query, key and head where attention is not fused: scores, mask, softmax, dropout, product."""
_LOGIT_BYTES: Final = 20
"""Per token and vocabulary entry: logits and their gradient, both in 16 bits and in fp32, and the fp32 log-softmax."""
_GPU_ELEMENT_BYTES: Final[Mapping[Bits, int]] = {4: 2, 8: 2, 16: 2, 32: 4}
_CPU_ELEMENT_BYTES: Final[Mapping[Bits, int]] = {4: 2, 8: 3, 16: 2, 32: 4}
"""8-bit layers on a CPU keep an fp16 copy beside; both models above need half as much again."""


def activation_bytes(base: BaseModelFacts, *, element: int, batch: int, length: int, checkpointing: bool) -> float:
    """Peak bytes kept between forward and backward of `batch` × `length` tokens, `element` bytes an element.

    A base with a head of its own to train is a classifier; any other makes logits over its vocabulary, which
    dominate small language models. Checkpointing keeps each layer's input and one layer in full.
    """
    per_layer = element * (_HIDDEN_ELEMENTS * base.hidden_size + _INTERMEDIATE_ELEMENTS * base.intermediate_size)
    if base.materialised_attention:
        per_layer += element * _SCORE_ELEMENTS * base.attention_heads * length
    layers = element * base.hidden_size * base.layers + per_layer if checkpointing else per_layer * base.layers
    logits = 0 if base.head else _LOGIT_BYTES * base.vocabulary_size
    return batch * length * (layers + logits)


def element_bytes(bits: Bits, *, on_gpu: bool) -> int:
    """Bytes of one kept element: of the type computed in, not of the one stored."""
    return _GPU_ELEMENT_BYTES[bits] if on_gpu else _CPU_ELEMENT_BYTES[bits]
