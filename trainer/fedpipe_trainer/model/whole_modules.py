"""Modules of the base that are trained whole beside the adapters: PEFT's `modules_to_save`, such as embeddings, norms, an output layer.

A site starts from the checkpoint's values, and sends by how much it changed them: so the increments of the first round have a length, by
which they are compared and clipped, as those of an adapter have.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from torch import Tensor, nn
from transformers import PreTrainedModel

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.contract.result import MAX_WHOLE_TENSORS
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.checkpoint import DTYPES, Checkpoint

_SUGGESTIONS: Final = 5
_LAST_NORMS: Final = ("norm", "ln_f", "final_layer_norm", "final_norm")
"""What architectures with one stack of layers call the norm behind the last of them."""
_SPEC: Final = "planning.modulesToSave"


def whole_parameters(model: PreTrainedModel, names: Collection[str], *, head: Collection[str]) -> tuple[str, ...]:
    """The parameters of the modules whose names end in one of `names`, as PEFT finds them, in the model's order.

    Args:
        model: a loaded model or one on the meta device, without adapters.
        names: ends of module names.
        head: the parameters of a classification head, which is trained whole anyway.

    Raises:
        TaskFailed: BadModel, no module has such a name, or one has no parameters or shares them with another.
    """
    modules = dict(model.named_modules())
    found: dict[str, None] = {}
    for name in names:
        matching = [path for path in modules if path.endswith(name)]
        if not matching:
            raise TaskFailed(FailureReason.BAD_MODEL, _no_such_module(name, modules, model.config.model_type))
        parameters = [f"{path}.{one}" for path in matching for one, _ in modules[path].named_parameters()]
        if not parameters:
            raise _bad(f"{matching[0]} has no parameters, so that there is nothing in it to train: leave it out of {_SPEC}")
        found |= dict.fromkeys(parameters)
    whole = tuple(name for name, _ in model.named_parameters(remove_duplicate=False) if name in found and name not in head)
    if len(whole) > MAX_WHOLE_TENSORS:
        raise _bad(f"{_SPEC} names {len(whole)} parameters of this model, and at most {MAX_WHOLE_TENSORS} can be trained whole: name fewer")
    _check_untied(model, whole)
    return whole


def check_apart(whole: Collection[str], weights: Collection[str]) -> None:
    """Refuse a module that gets an adapter and is trained whole.

    Raises:
        TaskFailed: BadModel.
    """
    if both := sorted(weight for weight in weights if f"{weight}.weight" in whole):
        msg = f"{', '.join(both[:_SUGGESTIONS])} would be trained whole and get an adapter, too"
        raise _bad(f"{msg}: name other modules in {_SPEC}, or other weights in planning.targetModules")


def lowest_layer_of(model: PreTrainedModel, whole: Collection[str], layers: int) -> int:
    """The lowest layer from which on a model is trained that trains these parameters: what is not known to be above the layers counts as 0.

    Args:
        model: the model.
        whole: names of parameters.
        layers: number of layers, which an output layer and the last norm are above.
    """
    output = model.get_output_embeddings()
    above = {name for name, module in model.named_modules() if module is output} if output is not None else set()

    def layer(parameter: str) -> int:
        module = parameter.rpartition(".")[0]
        number = next((int(part) for part in module.split(".") if part.isdecimal()), None)
        if model.config.is_encoder_decoder:
            return layers if module in above else 0
        if number is not None:
            return number
        parent, _, last = module.rpartition(".")
        return layers if module in above or (last in _LAST_NORMS and "embed" not in parent) else 0

    return min(map(layer, whole), default=layers)


@dataclass(frozen=True)
class StoredValues(Mapping[str, Tensor]):
    """The checkpoint's values of some parameters, in 32 bits. Each is read when it is asked for: an embedding may have a gigabyte.

    They are those of the files and not of the loaded model, whose bits differ by site, so that all sites start from the same values.
    """

    checkpoint: Checkpoint
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.checkpoint.by_key[self.checkpoint.key_of[name]].read().float()

    def __contains__(self, name: object) -> bool:
        return name in self.names  # Mapping's own would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def stored_values(checkpoint: Checkpoint, whole: tuple[str, ...]) -> StoredValues:
    """The checkpoint's values of these parameters.

    Raises:
        TaskFailed: BadModel, the checkpoint has one of them in another form, or not at all.
    """
    for name in whole:
        key = checkpoint.key_of.get(name)
        if key is None or checkpoint.by_key[key].dtype not in DTYPES:
            raise _bad(f"the checkpoint has no tensor of its own for {name}, as in joined experts: leave its module out of {_SPEC}")
    return StoredValues(checkpoint, whole)


def _check_untied(model: nn.Module, whole: Collection[str]) -> None:
    """Refuse parameters that other modules use, too: a copy that is trained would leave the other one behind."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        if (ours := [name for name in names if name in whole]) and len(names) > 1:
            others = ", ".join(name for name in names if name != ours[0])
            msg = f"{ours[0]} is the same parameter as {others} (tied), so that training it whole would change both"
            raise _bad(f"{msg}: leave it out of {_SPEC}, or untie and save the model")


def _no_such_module(name: str, modules: Mapping[str, nn.Module], model_type: str) -> str:
    ends = {path.rpartition(".")[2]: path for path in modules if path}
    near = [ends[end] for end in get_close_matches(name.rpartition(".")[2], ends, n=_SUGGESTIONS)]
    known = [path for path, module in modules.items() if path and not any(part.isdecimal() for part in path.split(".")) and _holds(module)]
    said = f"the nearest are {', '.join(near)}" if near else f"it has {', '.join(known[:_SUGGESTIONS])} and others"
    return f"no module of this {model_type} model has a name that ends in {name!r} ({said}): see {_SPEC}"


def _holds(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _bad(message: str) -> TaskFailed:
    return TaskFailed(FailureReason.BAD_MODEL, message)
