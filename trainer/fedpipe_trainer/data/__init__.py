"""From a site's data file to the batches of a step: rows, then examples, then tensors.

The data is never written anywhere. Error messages name files, lines, columns and labels, but never quote a text.
"""

from fedpipe_trainer.data.batches import (
    Batch,
    batch_of_step,
    collate,
    compose_batches,
    count_padding,
    count_tokens,
    micro_batches,
    shuffled,
    target_count,
)
from fedpipe_trainer.data.encoding import IGNORED, Example, Tokenizer, encode, encode_once, encode_prompts
from fedpipe_trainer.data.rows import Row, Rows, read_rows
from fedpipe_trainer.data.templates import columns_of, fill

__all__ = [
    "IGNORED",
    "Batch",
    "Example",
    "Row",
    "Rows",
    "Tokenizer",
    "batch_of_step",
    "collate",
    "columns_of",
    "compose_batches",
    "count_padding",
    "count_tokens",
    "encode",
    "encode_once",
    "encode_prompts",
    "fill",
    "micro_batches",
    "read_rows",
    "shuffled",
    "target_count",
]
