"""Keeps the reference's margins in the site's cache, beside the activations: four bytes a pair, and no pass of the base in later rounds.

They are kept by micro-batch, since padding changes the last bits of a sum: what is read is what would be computed, so an update does not
depend on what the cache holds.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import torch
from torch import Tensor

from fedpipe_trainer.activation_cache import CachePlace, cache_key, name_of
from fedpipe_trainer.activation_store import FOLDER, ActivationStore
from fedpipe_trainer.adapters import AdapterTensors
from fedpipe_trainer.contract import Objective, Preference
from fedpipe_trainer.model import Base
from fedpipe_trainer.reference import Batch, kept_reference


@contextmanager
def cached_reference(base: Base, objective: Objective, place: CachePlace) -> Iterator[None]:
    """In this context, a preference training or evaluation reads the base's margins from the site's cache, as far as it has them.

    Args:
        base: the base, with or without adapters.
        objective: any other needs no reference.
        place: its folder is used, up to its limit for activations.
    """
    if not isinstance(objective, Preference):
        yield
        return
    # No layer lies below layer 0, so the key is that of the base alone, and no other values have it.
    key = cache_key(base, 0, AdapterTensors())
    with closing(ActivationStore(place.cache / FOLDER, key, place.activation_cache_bytes)) as store:

        def kept(batch: Batch, compute: Callable[[], Tensor]) -> Tensor:
            name = name_of(batch["input_ids"], batch["attention_mask"], batch["labels"])
            found = store.read(name, torch.float32)
            if found is None:
                found = compute()
                store.write(name, found)
            return found.to(base.device)

        with kept_reference(base.model, kept):
            yield
