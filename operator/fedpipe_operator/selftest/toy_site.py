"""A run and a site of invented figures, to see that this image can plan: nothing is measured, read or sent."""

from typing import Final

from fedpipe_operator.api import FineTuneSpec
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts, Bits, Throughput, WeightShape

_LAYERS: Final = 4
_WIDTH: Final = 256
_BITS: Final[tuple[Bits, ...]] = (4, 8, 16, 32)

SPEC: Final = FineTuneSpec.model_validate(
    {
        "model": {"source": "file:///models/toy"},
        "task": {"type": "CausalLM", "prompt": "{question}", "response": "{answer}", "maxLength": 128},
        "store": {"bucket": "toy"},
    }
)

_BASE: Final = BaseModelFacts(
    architecture="llama",
    parameters=8_000_000,
    quantised_parameters=4_000_000,
    layers=_LAYERS,
    hidden_size=_WIDTH,
    intermediate_size=4 * _WIDTH,
    attention_heads=4,
    vocabulary_size=16_000,
    weights=tuple(
        WeightShape(name=f"layers.{layer}.{part}", d_out=_WIDTH, d_in=_WIDTH, layer=layer) for layer in range(_LAYERS) for part in "qkvo"
    ),
)

SITE: Final = SiteProfile(
    name="toy",
    device="cpu",
    memory_bytes=4 * 2**30,
    up=100e6,
    down=1e9,
    fingerprint="0" * 64,
    base=_BASE,
    labels=(),
    train_samples=640,
    validation_samples=64,
    mean_tokens=64.0,
    longest_tokens=128,
    setup_seconds=0.0,
    runtime_bytes=500_000_000,
    load_peak_bytes={},
    base_bytes={},
    load_seconds=dict.fromkeys(_BITS, 2.0),
    points=tuple(
        Throughput(bits=bits, batch_size=1, length=128, tokens_per_second=2000.0, evaluate_tokens_per_second=4000.0, peak_memory_bytes=0)
        for bits in _BITS
    ),
    rank=8,
    unsupported={},
    first_step_seconds={},
    importance=None,
)
