"""Tiny models with random weights of the families of transformers that people fine-tune: two layers, hidden size 32, a byte a token."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from toys import END, PAD, START, VOCABULARY, byte_tokenizer

from fedpipe_trainer.contract import CausalLM, Objective, Seq2SeqLM, SequenceClassification

CAUSAL: Final = CausalLM(prompt="{text}", response="{label}", max_length=48)
SEQ2SEQ: Final = Seq2SeqLM(prompt="{text}", response="{label}", max_length=48)
CLASSES: Final = SequenceClassification(labels=("left", "right", "up"), max_length=48)
_AUTO: Final[dict[str, Any]] = {
    "CausalLM": transformers.AutoModelForCausalLM,
    "Seq2SeqLM": transformers.AutoModelForSeq2SeqLM,
    "SequenceClassification": transformers.AutoModelForMaskedLM,
}
_TOKENS: Final = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
_SIZES: Final = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_WIDE: Final = _TOKENS | _SIZES | {"max_position_embeddings": 512}
_GROUPED: Final = _WIDE | {"num_key_value_heads": 2}
_HEADS: Final = _GROUPED | {"head_dim": 8}
_EXPERTS: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GPT: Final = _TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_OPT: Final = _TOKENS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32}
_T5: Final = {"vocab_size": VOCABULARY, "d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4}
_T5_TOKENS: Final = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
_BART: Final = (
    _TOKENS
    | {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2}
    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 512}
    | {"decoder_start_token_id": END, "forced_eos_token_id": None}
)
_DEBERTA: Final = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 64}
_V3: Final = {"share_att_key": True, "position_buckets": 32, "norm_rel_ebd": "layer_norm"}


@dataclass(frozen=True)
class Family:
    """A family: its models in words, the configuration of a tiny one, and the task that it is tested with."""

    models: str
    config: Callable[[], Any]
    objective: Objective


FAMILIES: Final[dict[str, Family]] = {
    "llama": Family("Llama, SmolLM2, TinyLlama", lambda: transformers.LlamaConfig(**_GROUPED), CAUSAL),
    "qwen2": Family("Qwen2, Qwen2.5", lambda: transformers.Qwen2Config(**_GROUPED, tie_word_embeddings=True), CAUSAL),
    "qwen3": Family("Qwen3", lambda: transformers.Qwen3Config(**_HEADS, tie_word_embeddings=True), CAUSAL),
    "mistral": Family("Mistral, Ministral", lambda: transformers.MistralConfig(**_GROUPED), CAUSAL),
    "gemma2": Family("Gemma 2", lambda: transformers.Gemma2Config(**_HEADS), CAUSAL),
    "gemma3_text": Family("Gemma 3 (text: 270M, 1B)", lambda: transformers.Gemma3TextConfig(**_HEADS), CAUSAL),
    "phi3": Family("Phi-3, Phi-4", lambda: transformers.Phi3Config(**_GROUPED), CAUSAL),
    "gpt2": Family("GPT-2, DistilGPT-2", lambda: transformers.GPT2Config(**_GPT), CAUSAL),
    "gpt_neox": Family("GPT-NeoX, Pythia", lambda: transformers.GPTNeoXConfig(**_WIDE), CAUSAL),
    "olmo2": Family("OLMo 2", lambda: transformers.Olmo2Config(**_WIDE), CAUSAL),
    "mixtral": Family("Mixtral", lambda: transformers.MixtralConfig(**_GROUPED, num_local_experts=4), CAUSAL),
    "qwen3_moe": Family("Qwen3-MoE", lambda: transformers.Qwen3MoeConfig(**_HEADS, **_EXPERTS), CAUSAL),
    "bert": Family("BERT, MiniLM, BGE", lambda: transformers.BertConfig(**_WIDE), CLASSES),
    "roberta": Family("RoBERTa", lambda: transformers.RobertaConfig(**_WIDE), CLASSES),
    "deberta-v2": Family("DeBERTa-v2, DeBERTa-v3", lambda: transformers.DebertaV2Config(**_WIDE, **_DEBERTA, **_V3), CLASSES),
    "mpnet": Family("MPNet", lambda: transformers.MPNetConfig(**_WIDE), CLASSES),
    "modernbert": Family("ModernBERT", lambda: transformers.ModernBertConfig(**_WIDE, cls_token_id=START, sep_token_id=END), CLASSES),
    "t5": Family("T5, FLAN-T5", lambda: transformers.T5Config(**_T5, **_T5_TOKENS), SEQ2SEQ),
    "bart": Family("BART", lambda: transformers.BartConfig(**_BART), SEQ2SEQ),
}
"""By `config.model_type`: those of docs/models.md, which every change is tested with."""
MORE: Final[dict[str, Family]] = {
    "gemma": Family("Gemma", lambda: transformers.GemmaConfig(**_HEADS), CAUSAL),
    "olmo": Family("OLMo", lambda: transformers.OlmoConfig(**_WIDE), CAUSAL),
    "olmo3": Family("OLMo 3", lambda: transformers.Olmo3Config(**_WIDE), CAUSAL),
    "qwen2_moe": Family(
        "Qwen1.5-MoE", lambda: transformers.Qwen2MoeConfig(**_GROUPED, **_EXPERTS, shared_expert_intermediate_size=32), CAUSAL
    ),
    "olmoe": Family("OLMoE", lambda: transformers.OlmoeConfig(**_WIDE, num_experts=4, num_experts_per_tok=2), CAUSAL),
    "granite": Family("Granite", lambda: transformers.GraniteConfig(**_GROUPED), CAUSAL),
    "smollm3": Family("SmolLM3", lambda: transformers.SmolLM3Config(**_GROUPED), CAUSAL),
    "starcoder2": Family("StarCoder2", lambda: transformers.Starcoder2Config(**_GROUPED), CAUSAL),
    "stablelm": Family("StableLM", lambda: transformers.StableLmConfig(**_GROUPED), CAUSAL),
    "cohere": Family("Command R", lambda: transformers.CohereConfig(**_GROUPED), CAUSAL),
    "phi": Family("Phi-1, Phi-2", lambda: transformers.PhiConfig(**_WIDE), CAUSAL),
    "opt": Family("OPT", lambda: transformers.OPTConfig(**_OPT), CAUSAL),
    "gpt_bigcode": Family("StarCoder", lambda: transformers.GPTBigCodeConfig(**_GPT), CAUSAL),
    "gpt_neo": Family(
        "GPT-Neo",
        lambda: transformers.GPTNeoConfig(
            **_TOKENS, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], max_position_embeddings=512
        ),
        CAUSAL,
    ),
    "gptj": Family("GPT-J", lambda: transformers.GPTJConfig(**_GPT, rotary_dim=4), CAUSAL),
    "falcon": Family(
        "Falcon", lambda: transformers.FalconConfig(**_TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4), CAUSAL
    ),
    "bloom": Family("BLOOM", lambda: transformers.BloomConfig(**_TOKENS, hidden_size=32, n_layer=2, n_head=4), CAUSAL),
    "xlm-roberta": Family("XLM-RoBERTa, multilingual E5", lambda: transformers.XLMRobertaConfig(**_WIDE), CLASSES),
    "camembert": Family("CamemBERT", lambda: transformers.CamembertConfig(**_WIDE), CLASSES),
    "electra": Family("ELECTRA", lambda: transformers.ElectraConfig(**_WIDE), CLASSES),
    "distilbert": Family(
        "DistilBERT",
        lambda: transformers.DistilBertConfig(vocab_size=VOCABULARY, pad_token_id=PAD, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
        CLASSES,
    ),
    "deberta": Family("DeBERTa", lambda: transformers.DebertaConfig(**_WIDE, **_DEBERTA), CLASSES),
    "mt5": Family("mT5", lambda: transformers.MT5Config(**_T5, **_T5_TOKENS), SEQ2SEQ),
    "umt5": Family("UMT5", lambda: transformers.UMT5Config(**_T5, **_T5_TOKENS), SEQ2SEQ),
    "mbart": Family("mBART", lambda: transformers.MBartConfig(**_BART), SEQ2SEQ),
    "pegasus": Family("PEGASUS", lambda: transformers.PegasusConfig(**_BART), SEQ2SEQ),
    "marian": Family("Marian, OPUS-MT", lambda: transformers.MarianConfig(**_BART), SEQ2SEQ),
}
"""Others that have default weights; the nightly tests train them."""


def make_family(name: str, folder: Path) -> None:
    """Write the family's tiny model, with the same weights every time, and a tokenizer."""
    family = (FAMILIES | MORE)[name]
    torch.manual_seed(0)
    _AUTO[family.objective.type].from_config(family.config()).save_pretrained(folder)
    byte_tokenizer(add_end_token=family.objective.type == "Seq2SeqLM").save_pretrained(folder)
