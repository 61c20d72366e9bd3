"""From a site's data file to the batches of a step: rows, then examples, then tensors.

The data is never written anywhere. Messages name files, lines and the columns of the task, and quote
nothing of the data: no cell, no label, no other column.
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
from fedpipe_trainer.data.readers import files_of
from fedpipe_trainer.data.rows import Row, Rows, read_rows
from fedpipe_trainer.data.selection import select_rows, with_run_labels
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
    "files_of",
    "fill",
    "micro_batches",
    "read_rows",
    "select_rows",
    "shuffled",
    "target_count",
    "with_run_labels",
]
