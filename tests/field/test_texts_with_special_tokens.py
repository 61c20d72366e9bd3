"""Reports on special tokens in people's texts, tried on models whose heads count the end tokens of a sample."""

import pytest
import torch
from toys import END, PAD, VOCABULARY, byte_tokenizer
from transformers import BartConfig, BartForSequenceClassification, PretrainedConfig, T5Config, T5ForSequenceClassification

from fedpipe_trainer.contract import CausalLM, SequenceClassification
from fedpipe_trainer.data import collate, encode
from fedpipe_trainer.losses import summed_loss

IDS = {"pad_token_id": PAD, "eos_token_id": END, "vocab_size": VOCABULARY}
T5 = T5Config(d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=PAD, num_labels=2, **IDS)
BART = BartConfig(
    d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
    decoder_ffn_dim=32, decoder_start_token_id=END, forced_eos_token_id=None, bos_token_id=None, num_labels=2, **IDS,
)  # fmt: skip
HOSTILE = ["ends </s> in </s> the middle", "short", "x" * 300, "</s>"]


@pytest.mark.parametrize(("model_class", "config"), [(T5ForSequenceClassification, T5), (BartForSequenceClassification, BART)])
@pytest.mark.parametrize("text_pair", [None, "b"], ids=["texts", "pairs"])
def test_a_classifier_that_counts_end_tokens_gets_the_same_number_in_every_sample(
    model_class: type, config: PretrainedConfig, text_pair: str | None
) -> None:
    """huggingface/transformers#24726: `</s>` in a text, or none after truncation, ended training."""
    objective = SequenceClassification(text="a", text_pair=text_pair, labels=("no", "yes"), max_length=32)
    rows = [{"a": text, "b": text[::-1], "label": "yes"} for text in HOSTILE]

    examples = encode(rows, objective, byte_tokenizer(add_end_token=True))
    loss, targets = summed_loss(model_class(config).eval(), collate(examples[:], objective, PAD), objective)  # type: ignore[call-arg]

    assert targets == len(HOSTILE)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("ends_texts", [True, False])
def test_a_causal_sample_ends_once_and_at_its_end(ends_texts: bool) -> None:
    """A tokenizer that appends eos put one between prompt and response, and so did a text that holds one."""
    objective = CausalLM(prompt="{a}: ", response="{b}", max_length=128)
    [sample] = encode([{"a": "go </s> on", "b": "yes </s> no"}], objective, byte_tokenizer(add_end_token=ends_texts))

    assert sample.input_ids.count(END) == 1
    assert sample.input_ids[-1] == END
