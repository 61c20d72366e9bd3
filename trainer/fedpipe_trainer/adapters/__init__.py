"""Adapters: their wire format, attaching them to a base model, merging them, and exporting them as a PEFT folder."""

from fedpipe_trainer.adapters.export import base_name, write_peft_folder, zero_adapter
from fedpipe_trainer.adapters.lora import FROZEN_ADAPTER, Adapters, AdapterSpec, attach_adapters, disabled_adapters
from fedpipe_trainer.adapters.wire import AdapterTensors, Factors, read_global_adapter, write_tensors

__all__ = [
    "FROZEN_ADAPTER",
    "AdapterSpec",
    "AdapterTensors",
    "Adapters",
    "Factors",
    "attach_adapters",
    "base_name",
    "disabled_adapters",
    "read_global_adapter",
    "write_peft_folder",
    "write_tensors",
    "zero_adapter",
]
