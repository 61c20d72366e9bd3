"""From a site's data file to the batches of a step: rows, then examples, then tensors.

The data is never written anywhere. Error messages name files, lines, columns and labels, but never quote a text.
"""

from fedpipe_trainer.data.batches import batch_indices, collate, target_count
from fedpipe_trainer.data.encoding import IGNORED, Example, Tokenizer, encode, encode_once, encode_prompts
from fedpipe_trainer.data.rows import Row, Rows, read_rows
from fedpipe_trainer.data.templates import columns_of, fill

__all__ = [
    "IGNORED",
    "Example",
    "Row",
    "Rows",
    "Tokenizer",
    "batch_indices",
    "collate",
    "columns_of",
    "encode",
    "encode_once",
    "encode_prompts",
    "fill",
    "read_rows",
    "target_count",
]
