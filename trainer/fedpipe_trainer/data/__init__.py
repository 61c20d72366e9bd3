"""From a site's data file to the batches of a step: rows, then examples, then tensors.

Rows leave the process only for the site's own volumes (`spill`, `token_cache`). Messages name files, lines and the columns of the
task, and quote nothing of the data: no cell, no label, no other column.
"""

from fedpipe_trainer.data.batches import (
    Batch,
    batch_of_step,
    collate,
    compose_batches,
    count_padding,
    count_targets,
    count_tokens,
    micro_batches,
    shuffled,
)
from fedpipe_trainer.data.encoding import encode, encode_once, encode_prompts, end_tokens
from fedpipe_trainer.data.examples import IGNORED, Example, Examples, blocks_of, lengths_of
from fedpipe_trainer.data.formats import labels_of, prompt_key, references_of, shown_prompt
from fedpipe_trainer.data.found_labels import with_found_labels
from fedpipe_trainer.data.preferences import is_sample, shown_pair
from fedpipe_trainer.data.readers import Bounds, files_of
from fedpipe_trainer.data.rows import Row, Rows, read_rows
from fedpipe_trainer.data.selection import select_rows, with_run_labels
from fedpipe_trainer.data.templates import columns_of, fill
from fedpipe_trainer.data.tokenizer import Tokenizer

__all__ = [
    "IGNORED",
    "Batch",
    "Bounds",
    "Example",
    "Examples",
    "Row",
    "Rows",
    "Tokenizer",
    "batch_of_step",
    "blocks_of",
    "collate",
    "columns_of",
    "compose_batches",
    "count_padding",
    "count_targets",
    "count_tokens",
    "encode",
    "encode_once",
    "encode_prompts",
    "end_tokens",
    "files_of",
    "fill",
    "is_sample",
    "labels_of",
    "lengths_of",
    "micro_batches",
    "prompt_key",
    "read_rows",
    "references_of",
    "select_rows",
    "shown_pair",
    "shown_prompt",
    "shuffled",
    "with_found_labels",
    "with_run_labels",
]
