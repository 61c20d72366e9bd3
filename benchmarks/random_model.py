"""Makes a model of realistic size with random weights, where a real one is not available: speed and memory do not depend on the values.

    python benchmarks/random_model.py FOLDER --shape llama-7b --tokenizer MODEL_FOLDER

The weights are drawn on a GPU, if there is one, and saved in bfloat16; the vocabulary size is the tokenizer's.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from fedpipe_trainer import device

SHAPES: Final[Mapping[str, dict[str, Any]]] = {
    "llama-7b": {  # arXiv 2302.13971, table 2
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
POSITIONS: Final = 2048


def main() -> None:
    """Write the model and its tokenizer to the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer, local_files_only=True)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **SHAPES[arguments.shape], **special)
    torch.manual_seed(0)
    with torch.device(device.choose()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(arguments.folder)
    tokenizer.save_pretrained(arguments.folder)
    print(
        f"{arguments.folder}: {arguments.shape}, {sum(parameter.numel() for parameter in model.parameters()) / 1e9:.2f} billion parameters"
    )


if __name__ == "__main__":
    main()
