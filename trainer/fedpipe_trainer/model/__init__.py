"""The frozen base model: where its files come from, what it is made of, and how it is loaded at a bit width."""

from fedpipe_trainer.model.architecture import AUTO_CLASSES, facts, head_shapes, matrix_parameters, target_weights
from fedpipe_trainer.model.base import Base, borrow, load, read_tokenizer, release
from fedpipe_trainer.model.source import checkpoint_dtype, fetch, fingerprint

__all__ = [
    "AUTO_CLASSES",
    "Base",
    "borrow",
    "checkpoint_dtype",
    "facts",
    "fetch",
    "fingerprint",
    "head_shapes",
    "load",
    "matrix_parameters",
    "read_tokenizer",
    "release",
    "target_weights",
]
