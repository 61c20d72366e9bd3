"""Toy models of real architectures with random weights: two layers, hidden size 32, one token per byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

BYTES = 256
PAD, END, START, MASK = range(BYTES, BYTES + 4)
VOCABULARY = BYTES + 4

_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=START, eos_token_id=END, pad_token_id=PAD
    ),
    "bert": lambda: BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=PAD,
    ),
    "mpnet": lambda: MPNetConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=514
    ),
    "t5": lambda: T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_ff=64,
        d_kv=8,
        num_layers=2,
        num_heads=4,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
    ),
}
_CLASSES: dict[str, Any] = {
    "llama": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
    "bert": AutoModelForMaskedLM,
    "mpnet": AutoModelForMaskedLM,
    "t5": AutoModelForSeq2SeqLM,
}


def folders(root: Path, make: Callable[[str, Path], object]) -> Callable[[str], Path]:
    """A function that returns the folder of a model by its name, which `make` writes once."""

    def folder_of(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            make(name, folder)
        return folder

    return folder_of


def make_toy(name: str, folder: Path, *, layers: int = 2) -> None:
    """Write a model of this architecture, with the same weights every time, and its tokenizer."""
    torch.manual_seed(0)
    config = _CONFIGS[name]()
    config.num_hidden_layers = layers
    _CLASSES[name].from_config(config).save_pretrained(folder)
    byte_tokenizer(add_end_token=name == "t5").save_pretrained(folder)


def byte_tokenizer(*, add_end_token: bool) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per byte; with `add_end_token` it adds the end token to every text, as T5's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<s>", "<mask>"])
    if add_end_token:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", mask_token="<mask>")  # noqa: S106 - tokens of text
