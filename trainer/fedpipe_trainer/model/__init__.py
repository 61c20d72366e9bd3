"""The frozen base model: fetching its files, reading its architecture, and loading it at a bit width."""

from fedpipe_trainer.model.architecture import (
    AUTO_CLASSES,
    count_encoder_layers,
    facts,
    head_shapes,
    layer_of,
    linear_shape,
    target_weights,
)
from fedpipe_trainer.model.base import Base, clear_cache, dense_weight, load, load_cached, read_tokenizer
from fedpipe_trainer.model.download_cache import read_revision
from fedpipe_trainer.model.headers import fetch_headers
from fedpipe_trainer.model.identity import fingerprint
from fedpipe_trainer.model.layers import check_depth, layers_of, lower_part_in_evaluation_mode
from fedpipe_trainer.model.limits import check_lengths, check_model
from fedpipe_trainer.model.source import checkpoint_dtype, fetch

__all__ = [
    "AUTO_CLASSES",
    "Base",
    "check_depth",
    "check_lengths",
    "check_model",
    "checkpoint_dtype",
    "clear_cache",
    "count_encoder_layers",
    "dense_weight",
    "facts",
    "fetch",
    "fetch_headers",
    "fingerprint",
    "head_shapes",
    "layer_of",
    "layers_of",
    "linear_shape",
    "load",
    "load_cached",
    "lower_part_in_evaluation_mode",
    "read_revision",
    "read_tokenizer",
    "target_weights",
]
