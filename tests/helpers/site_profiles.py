"""Site profiles and specs for tests of planning: real models, and measurements of two of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedpipe_operator.api import FineTuneSpec
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import BaseModelFacts, Bits, Throughput, WeightShape

GIB = 1024**3
FINGERPRINT = "a" * 64

SMOLLM2 = BaseModelFacts(
    architecture="llama",
    parameters=134_515_008,
    quantised_parameters=106_168_320,
    layers=30,
    hidden_size=576,
    intermediate_size=1536,
    attention_heads=9,
    vocabulary_size=49_152,
    weights=tuple(
        WeightShape(name=f"model.layers.{layer}.self_attn.{part}_proj", d_out=d_out, d_in=576, layer=layer)
        for layer in range(30)
        for part, d_out in (("q", 576), ("k", 192), ("v", 192), ("o", 576))
    ),
)
MPNET = BaseModelFacts(
    architecture="mpnet",
    parameters=109_500_000,
    quantised_parameters=84_934_656,
    layers=12,
    hidden_size=768,
    intermediate_size=3072,
    attention_heads=12,
    vocabulary_size=30_527,
    supports_gradient_checkpointing=False,
    materialised_attention=True,
    weights=tuple(
        WeightShape(name=f"mpnet.encoder.layer.{layer}.attention.attn.{part}", d_out=768, d_in=768, layer=layer)
        for layer in range(12)
        for part in "qkvo"
    ),
    head={"classifier.dense.weight": (768, 768), "classifier.out_proj.weight": (-1, 768)},
)
LLAMA_7B = BaseModelFacts(
    architecture="llama",
    parameters=6_738_415_616,
    quantised_parameters=6_476_005_376,
    layers=32,
    hidden_size=4096,
    intermediate_size=11_008,
    attention_heads=32,
    vocabulary_size=32_000,
    weights=tuple(WeightShape(name=f"layers.{layer}.{part}", d_out=4096, d_in=4096, layer=layer) for layer in range(32) for part in "qkvo"),
)


def point(*, bits: Bits, batch: int, length: int = 128, speed: float = 400.0, peak: float = 0.0) -> Throughput:
    """One measured training step; `peak` in bytes."""
    return Throughput(
        bits=bits,
        batch_size=batch,
        length=length,
        tokens_per_second=speed,
        evaluate_tokens_per_second=2 * speed,
        peak_memory_bytes=int(peak),
    )


def speeds(tokens_per_second: float) -> tuple[Throughput, ...]:
    """One point for each bit width, with a speed and without a peak (0)."""
    return tuple(point(bits=bits, batch=1, speed=tokens_per_second) for bits in (4, 8, 16, 32))


def a_site(name: str = "ward", **changes: Any) -> SiteProfile:
    """A site that trains SmolLM2 on a CPU at 400 tokens a second and has no measured peaks: its memory forecast is analytic."""
    site = SiteProfile(
        name=name,
        device="cpu",
        memory_bytes=8 * GIB,
        up=100e6,
        down=1e9,
        fingerprint=FINGERPRINT,
        base=SMOLLM2,
        labels=(),
        train_samples=640,
        validation_samples=64,
        mean_tokens=64.0,
        longest_tokens=128,
        setup_seconds=0.0,
        runtime_bytes=600_000_000,
        load_peak_bytes={},
        base_bytes={},
        load_seconds={4: 3.0, 8: 3.0, 16: 2.0, 32: 2.0},
        points=speeds(400.0),
        rank=8,
        unsupported={},
        first_step_seconds={},
        importance=None,
    )
    return replace(site, **changes)


def a_spec(**sections: Mapping[str, Any]) -> FineTuneSpec:
    """A causal language model run; each argument replaces a section of the spec, in camelCase."""
    document: dict[str, Any] = {
        "model": {"source": "file:///models/smollm2"},
        "task": {"type": "CausalLM", "prompt": "{mr}", "response": "{ref}", "maxLength": 128},
        "store": {"bucket": "fedpipe"},
        "planning": {"bits": [4, 8, 16, 32]},
    }
    return FineTuneSpec.model_validate(document | sections)
