"""Resolves the model source of a task to a verified local folder. Only an `hf://` source accesses a hub."""

import hashlib
import os
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlparse

import torch
from safetensors import safe_open

from fedpipe_trainer.contract import FailureReason, Model
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.task_runtime import TaskRuntime

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EDGE_BYTES = 1 << 20
_HUB = re.compile(r"^hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>.+))?$")


def fetch(model: Model, runtime: TaskRuntime) -> Path:
    """The local folder of a model, downloaded if necessary, with all files that loading needs and the expected fingerprint.

    Raises:
        TaskFailed: BadModel, the folder or one of its files is missing, or the fingerprint is not the task's.
    """
    scheme = urlparse(model.source).scheme
    folder = {"file": _local, "hf": _from_hub, "s3": _from_urls}[scheme](model, runtime)
    _check_folder(folder)
    if model.fingerprint is not None and (actual := fingerprint(folder)) != model.fingerprint:
        msg = f"the model in {folder} has fingerprint {actual}, the run's is {model.fingerprint}: use the same model files at every site"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    return folder


def fingerprint(folder: Path) -> str:
    """A fast hash of the model: of config.json and, for every weight file, its name, size, header, first and last MiB.

    It reads at most about 2 MiB and the header of each file, so it distinguishes models and revisions within milliseconds.
    It does not protect against deliberate changes in the middle of a file.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        with path.open("rb") as file:
            header = struct.unpack("<Q", file.read(8))[0]
            digest.update(file.read(min(header, size)))
            file.seek(0)
            digest.update(file.read(_EDGE_BYTES))
            file.seek(max(0, size - _EDGE_BYTES))
            digest.update(file.read(_EDGE_BYTES))
    return digest.hexdigest()


def checkpoint_keys(folder: Path) -> dict[str, str]:
    """The type of each tensor of the checkpoint, by key, as named by safetensors."""
    keys: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys |= {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - it is not a mapping
    return keys


def checkpoint_dtype(folder: Path) -> torch.dtype:
    """The most frequent type among the tensors of the checkpoint: float32, float16 or bfloat16."""
    counts = Counter(_DTYPES[name] for name in checkpoint_keys(folder).values() if name in _DTYPES)
    return counts.most_common(1)[0][0] if counts else torch.float32


def _local(model: Model, _runtime: TaskRuntime) -> Path:
    return Path(unquote(urlparse(model.source).path))


def _from_hub(model: Model, _runtime: TaskRuntime) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a local source needs no hub client
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415 - a local source needs no hub client

    match = _HUB.match(model.source)
    if match is None:
        msg = f"{model.source} does not have the form hf://organisation/name@revision"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    try:
        return Path(snapshot_download(match["repository"], revision=match["revision"], allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        msg = f"cannot fetch {model.source} from the hub: {error}"
        raise TaskFailed(FailureReason.TRANSFER_FAILED, msg) from error


def _from_urls(model: Model, runtime: TaskRuntime) -> Path:
    if not model.files:
        msg = f"the task has no file URLs for {model.source}: `model.files` must have a URL for each file of the model folder"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    folder = runtime.cache / "models" / hashlib.sha256(f"{model.source} {model.revision}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for name, url in sorted(model.files.items()):
        if Path(name).name != name:
            raise TaskFailed(FailureReason.BAD_MODEL, f"model file {name!r} of {model.source} is not a plain file name")
        if not (folder / name).is_file():
            runtime.download(url, folder / name, None)
    return folder


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model folder {folder} does not exist at this site")
    missing = None
    if not (folder / "config.json").is_file():
        missing = "config.json"
    elif not any(folder.glob("*.safetensors")):
        missing = "model.safetensors (only safetensors checkpoints are supported)"
    elif not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        missing = "tokenizer.json (and none of the older tokenizer files)"
    if missing:
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model folder {folder} has no {missing}")
    unreadable = sorted(path.name for path in folder.iterdir() if path.is_file() and not os.access(path, os.R_OK))
    if unreadable:
        user = f"the trainer (user {os.getuid()})"
        msg = f"{user} may not read {', '.join(unreadable)} of the model folder {folder}: make them readable (chmod a+r)"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
