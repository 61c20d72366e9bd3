"""What an exception of a library means for a task: its input is unusable, or the machine's state. Found from its type and its stack.

A library names what it cannot use by dozens of exceptions of its own, which a list could never have all of. So what counts is who raised it
(a library, because of what it was given) and which layer of this package had called: the data's, the model's, or a step of the computation.
An exception that this package raises itself, or one of torch that may be the machine's fault, has no known meaning.
"""

import errno
import sys
import traceback
from pathlib import Path
from typing import Final

from fedpipe_trainer.contract import FailureReason

_PACKAGE: Final = Path(__file__).parent
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_INPUT_ERRORS: Final = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError, AssertionError, EOFError)
"""What a library raises where it is given what it cannot use. Others, as RuntimeError of torch, may also be failures of the machine."""
_NOT_OF_A_LIBRARY: Final = {"builtins", _PACKAGE.name, *sys.stdlib_module_names}
_OF_MODELS: Final = {
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors"),
    *("tokenizers", "sentencepiece", "google", "jinja2"),
}
"""The libraries that read a model or compute with one."""
_COMPUTATION: Final = {"steps", "losses", "evaluation", "profiling", "recipes", "activation_cache"}
"""The layers of this package that call a loaded model."""
_WITH_ROWS: Final = {"data", "steps", "losses", "evaluation", "activation_cache"}
"""The layers that have the site's rows at hand: what they call may quote them, also where a layer of the model is called by one."""
Known = tuple[FailureReason, str]


def known_failure(error: Exception) -> Known | None:
    """Reason and message for an exception that a library or the operating system raised because of its input or state; else None.

    The message has the library's own words only where it had read nothing but the model: others may quote the site's data.
    """
    return _of_the_machine(error) or _of_an_input(error)


def location(error: BaseException) -> str:
    """The location where the error was raised, as "function (file:line)"."""
    frames = traceback.extract_tb(error.__traceback__)
    return _place(frames[-1]) if frames else "an unknown location"


def circumstances(error: BaseException) -> str:
    """The step of the recipe that failed, and the file if the error names one by its whole path: any other text may be of the data."""
    frames = _own_frames(error)
    steps = [frame for frame in frames if "recipes" in Path(frame.filename).parts] or frames
    step = f"in step {_place(steps[-1])}" if steps else "outside of any step"
    return f"{step}, with the file {file}" if (file := _file(error)) else step


def _file(error: BaseException) -> str:
    file = getattr(error, "filename", None)
    return file if isinstance(file, str) and Path(file).is_absolute() else ""


def _of_the_machine(error: Exception) -> Known | None:
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f" of {file}" if (file := _file(error)) else ""
        return (
            FailureReason.TRANSFER_FAILED,
            f"the volume{where} is full: give it more space (the value `scratch` of the chart, or the cache)",
        )
    if isinstance(error, ImportError):
        package = f"the Python package {error.name}" if error.name else "a Python package"
        advice = "use another base model or file format, or an image that has it"
        return FailureReason.BAD_MODEL, f"{package} is needed and not in this trainer's image ({circumstances(error)}): {advice}"
    if _origin(error) == "huggingface_hub":
        failed = f"the client of the model hub failed ({type(error).__name__} in {location(error)})"
        return FailureReason.TRANSFER_FAILED, f"{failed}: check model.source, the token for it, and whether pods reach the hub"
    return None


def _of_an_input(error: Exception) -> Known | None:
    library, layer, where = _library(error), _layer(error), f"{type(error).__name__} in {location(error)}"
    is_torch_s = _origin(error) in {"builtins", "torch"} and type(error) is not Exception
    if is_torch_s and not isinstance(error, _INPUT_ERRORS):
        return None
    if layer == "data" and library and library not in _OF_MODELS - {"tokenizers"}:
        return FailureReason.BAD_DATA, f"{library} cannot read or encode the site's data: {where}: correct the file"
    is_of_model = layer in {"model", "adapters"} and library in _OF_MODELS
    if is_of_model and _WITH_ROWS.isdisjoint(_layers(error)):
        return FailureReason.BAD_MODEL, f"{library} cannot use the base model: {where}: {error}"
    if is_of_model or (layer in {"data", *_COMPUTATION} and library in _OF_MODELS):
        msg = f"{library} cannot compute with the base model or its tokenizer: {where}, {circumstances(error)}: use another base model"
        return FailureReason.BAD_MODEL, msg
    return None


def _library(error: Exception) -> str:
    """The package that raised the error; empty if this package, the standard library or nothing that is known did.

    A library in another language has no frames, and its exceptions are of a type of its own, or bare ones in a function that called it.
    """
    if _origin(error) not in _NOT_OF_A_LIBRARY:
        return _origin(error)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).is_relative_to(_PACKAGE):
            return ""
        if package := _package(frame):
            return package
    return ""


def _origin(error: Exception) -> str:
    """The top-level package of the error's type."""
    return type(error).__module__.partition(".")[0]


def _package(frame: traceback.FrameSummary) -> str:
    """The installed package that a frame belongs to; empty for the standard library."""
    parts = Path(frame.filename).parts
    return parts[parts.index("site-packages") + 1].removesuffix(".py") if "site-packages" in parts else ""


def _layer(error: Exception) -> str:
    """The folder of this package (`data`, `model`, …), or the module, whose call failed; empty if none is on the stack."""
    return next(reversed(_layers(error)), "")


def _layers(error: Exception) -> list[str]:
    """Those of all calls of this package on the stack, the last one last."""
    return [Path(frame.filename).relative_to(_PACKAGE).parts[0].removesuffix(".py") for frame in _own_frames(error)]


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    return [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_PACKAGE)]


def _place(frame: traceback.FrameSummary) -> str:
    return f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})"
