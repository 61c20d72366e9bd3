"""Checks that the files of a model's folder are whole and original, from their sizes, first bytes and headers: no weight is read."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedpipe_trainer import stand_ins
from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_PARSED: Final = 1 << 20
"""Bytes up to which a JSON file is parsed in every task; a longer one is looked at only where it cannot be read."""
_HEADER_LENGTH: Final = 8
_LONGEST_HEADER: Final = 100_000_000
"""Bytes of a safetensors header, by the format."""
_OTHER_WEIGHTS: Final = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.ggml", "*.h5", "*.msgpack", "*.npz", "*.onnx", "*.nemo", "*.safetensors"),
)
_QUANTISATION_KEYS: Final = ("quantization_config", "compression_config", "quantization")
_QUANTISATION_FILES: Final = ("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json")
_FULL_TYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})
_QUANTISED_SUFFIXES: Final = (
    *(".qweight", ".qzeros", ".g_idx", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight.absmax", ".weight.quant_map"),
    *(".SCB", ".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4", "_blocks"),
)
"""How the names of tensors end that only a quantised checkpoint has (GPTQ, AWQ, compressed-tensors, FP8, bitsandbytes, MXFP4)."""


@dataclass(frozen=True)
class TensorInfo:
    """What the header of a safetensors file says of a tensor."""

    dtype: str
    """As safetensors names it, such as BF16."""
    shape: tuple[int, ...]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that transformers loads weights from: one, or the shards that the index names, sorted; there may be others beside them.

    Raises:
        TaskFailed: BadModel, the index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if not (folder / INDEX).is_file():
        return ()
    return tuple(folder / name for name in sorted(set(_weight_map(folder).values())))


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name; the file's size is compared with what they need.

    Raises:
        TaskFailed: BadModel, the file is damaged: the message has both sizes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH), "little")
        if size < _HEADER_LENGTH or (length <= _LONGEST_HEADER and size < _HEADER_LENGTH + length):
            raise bad_model(f"{path} is cut short: it has {size} bytes, and its header alone needs more: {_COPY_AGAIN}")
        if length > _LONGEST_HEADER:
            raise bad_model(f"{path} is not a safetensors file: its first 8 bytes are not the length of a header: {_COPY_AGAIN}")
        text = file.read(length)
    try:
        document: dict[str, Any] = json.loads(text)
        entries = {name: entry for name, entry in document.items() if name != "__metadata__"}
        tensors = {name: TensorInfo(str(entry["dtype"]), tuple(entry["shape"])) for name, entry in entries.items()}
        needed = _HEADER_LENGTH + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise bad_model(f"{path} is damaged: its header is not that of a safetensors file: {_COPY_AGAIN}") from error
    if size != needed:
        damage = "is cut short" if size < needed else "is damaged"
        raise bad_model(f"{path} {damage}: it has {size} bytes, and by its header it needs {needed}: {_COPY_AGAIN}")
    return tensors


def check_files(folder: Path, names: tuple[str, ...]) -> None:
    """Check that each of these files, and each file of weights, has its own content, and all of it.

    Args:
        folder: the model's folder.
        names: the files that loading reads.

    Raises:
        TaskFailed: BadModel: a pointer of git-lfs, a link to nowhere, an empty file, an error page, a file that is cut short, a missing
            shard, weights in another format, an already quantised checkpoint.
    """
    for link in sorted(path for path in folder.iterdir() if path.is_symlink() and not path.exists()):
        raise bad_model(f"{link} is a link to {link.readlink()}, which is not there: copy the files themselves (cp -L)")
    for name in names:
        if not name.endswith(".safetensors"):  # of these, others than the ones that are loaded do not matter
            _check_content(folder / name)
    files = weight_files(folder)
    if not files:
        raise bad_model(f"the model folder {folder} has no {WEIGHTS} (only safetensors checkpoints are supported){other_weights(folder)}")
    if missing := [path.name for path in files if not path.is_file()]:
        listed = f"{', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}"  # noqa: PLR2004 - as many as can be read
        raise bad_model(
            f"{folder}/{INDEX} names {len(files)} files of weights, {len(missing)} of which are missing: {listed}: {_COPY_AGAIN}"
        )
    for path in files:
        _check_content(path)
    tensors = {path.name: read_header(path) for path in files}
    _check_index(folder, tensors)
    _check_original(folder, {name: info for one in tensors.values() for name, info in one.items()})


def other_weights(folder: Path) -> str:
    """What files of weights a folder without a checkpoint has instead, and how to convert them; empty without any.

    Raises:
        TaskFailed: BadModel, one of them is a pointer, empty or a web page.
    """
    names = sorted({path.name for pattern in _OTHER_WEIGHTS for path in folder.glob(pattern)} - {WEIGHTS})
    if not names:
        return ""
    for name in names:
        _check_content(folder / name)
    if (folder / "adapter_config.json").is_file():
        return f": {', '.join(names[:3])} belongs to a PEFT adapter. Merge it into its base (merge_and_unload) and give the merged model"
    if any(name.endswith(".safetensors") for name in names):
        return f", and no {INDEX} for its {', '.join(names[:3])}: {_COPY_AGAIN}, or rename a single file to {WEIGHTS}"
    convert = "from_pretrained(folder).save_pretrained(folder) of transformers converts it where you trust its origin"
    return f", but {', '.join(names[:3])}: {convert}"


def describe_damage(folder: Path, names: tuple[str, ...]) -> str:
    """What is wrong with one of these files, where a library could not read them; empty if they look whole."""
    for name in names:
        try:
            _check_content(folder / name, parse_up_to=1 << 40)
        except TaskFailed as found:
            return found.message
    return ""


def bad_model(message: str) -> TaskFailed:
    """The failure of a model that cannot be used."""
    return TaskFailed(FailureReason.BAD_MODEL, message)


_COPY_AGAIN: Final = "copy or download it again"


def _check_content(path: Path, parse_up_to: int = _PARSED) -> None:
    if found := stand_ins.described(path):
        raise bad_model(f"{path} {found}")
    with path.open("rb") as file:
        is_empty = not file.read(stand_ins.LONGEST).strip()
    if is_empty and path.suffix != ".txt":
        raise bad_model(f"{path} is empty: {_COPY_AGAIN}")
    if path.suffix == ".json" and path.stat().st_size <= parse_up_to:
        _read_json(path)


def _read_json(path: Path) -> Any:  # noqa: ANN401 - any JSON
    text = path.read_bytes()
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise bad_model(f"{path} is damaged: it is not UTF-8: {_COPY_AGAIN}") from error
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        damage = f"is cut short: it ends after {len(text)} bytes" if at_end else f"is damaged: it is not JSON at line {error.lineno}"
        raise bad_model(f"{path} {damage}: {_COPY_AGAIN}") from error


def _weight_map(folder: Path) -> Mapping[str, str]:
    document = _read_json(folder / INDEX)
    weights = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights.values()):
        raise bad_model(f"{folder}/{INDEX} has no weight_map, which says in which file each tensor is: {_COPY_AGAIN}")
    if outside := sorted(name for name in weights.values() if Path(name).name != name):
        raise bad_model(f"{folder}/{INDEX} names {outside[0]!r}, which is not a file of the same folder")
    return weights


def _check_index(folder: Path, tensors: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    """Each tensor of the index is in the file that the index names."""
    if WEIGHTS in tensors:
        return
    missing = sorted(key for key, name in _weight_map(folder).items() if key not in tensors[name])
    if missing:
        name = _weight_map(folder)[missing[0]]
        msg = f"{folder}/{name} has no tensor {missing[0]!r}, which {INDEX} says it has ({len(missing)} are missing): {_COPY_AGAIN}"
        raise bad_model(f"{msg}, all files from the same commit")


def _check_original(folder: Path, tensors: Mapping[str, TensorInfo]) -> None:
    found = next(_signs_of_quantisation(folder, tensors), "")
    if found:
        advice = "give the original checkpoint, in 16 or 32 bits: each site quantises it to the bits of its plan"
        raise bad_model(f"the model in {folder} is already quantised ({found}), and an adapter cannot be merged into it: {advice}")


def _signs_of_quantisation(folder: Path, tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    for path, value in _entries(_read_json(folder / "config.json")):
        if path.rpartition(".")[2] in _QUANTISATION_KEYS and isinstance(value, dict) and value:
            method = value.get("quant_method") or value.get("format") or f"{value.get('bits', value.get('num_bits', '?'))} bits"
            yield f"config.json has {path}, {method}"
    yield from (f"it has a {name}" for name in _QUANTISATION_FILES if (folder / name).is_file())
    for name, info in tensors.items():
        if name.endswith(_QUANTISED_SUFFIXES):
            yield f"it has the tensor {name}"
        if name.endswith(".weight") and info.dtype not in _FULL_TYPES:
            yield f"{name} is of type {info.dtype}"


def _entries(document: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any JSON
    if isinstance(document, dict):
        for key, value in document.items():
            path = f"{prefix}{key}"
            yield path, value
            yield from _entries(value, f"{path}.")
