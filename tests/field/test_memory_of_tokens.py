"""Tokens are in arrays, not in objects of Python."""

from toy_training import CAUSAL
from toys import byte_tokenizer

from fedpipe_trainer.data import encode


def test_a_token_takes_eight_bytes_at_most() -> None:
    rows = [{"a": "x" * 300, "b": "y" * 100}] * 300
    examples = encode(rows, CAUSAL.model_copy(update={"max_length": 1024}), byte_tokenizer(add_end_token=False))

    assert 0 < examples.nbytes <= 8 * sum(examples.lengths)
