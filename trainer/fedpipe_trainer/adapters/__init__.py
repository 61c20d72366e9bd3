"""Adapters: how they travel, how they are put on a base and taken off, how they leave as a PEFT folder."""

from fedpipe_trainer.adapters.export import merge, write_peft_folder
from fedpipe_trainer.adapters.lora import NO_ADAPTER_SPEC, Adapters, Site, attached
from fedpipe_trainer.adapters.wire import Factors, GlobalUpdate, read_update, write_tensors

__all__ = [
    "NO_ADAPTER_SPEC",
    "Adapters",
    "Factors",
    "GlobalUpdate",
    "Site",
    "attached",
    "merge",
    "read_update",
    "write_peft_folder",
    "write_tensors",
]
