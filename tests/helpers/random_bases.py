"""Base models of any size with random weights, where a real one is not available: written tensor by tensor, which takes no memory."""

from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from fedpipe_trainer.adapters.streaming_merge import MergedTensor, Shard

_FILE: Final = "model.safetensors"


def write_random_base(folder: Path, config: PretrainedConfig) -> None:
    """Write configuration and weights of a causal language model in bfloat16: norms are 1, the others drawn from N(0, 0.02²)."""
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config).state_dict()
    tensors = tuple(MergedTensor(name, "BF16", tuple(one.shape), one.numel() * 2, None, name) for name, one in state.items())
    generator = torch.Generator().manual_seed(0)
    with (folder / _FILE).open("wb") as file:
        file.write(Shard(_FILE, tensors).header)
        for one in tensors:
            value = torch.empty(one.shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
            value = torch.ones_like(value) if "norm" in one.key else value
            file.write(value.view(-1).view(torch.uint8).numpy().data)
