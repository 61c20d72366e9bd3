"""From a task's model source to a checked local folder. Only an `hf://` source may ask a hub."""

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
from fedpipe_trainer.workplace import Workplace

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EDGE_BYTES = 1 << 20
_HUB = re.compile(r"^hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>.+))?$")


def fetch(model: Model, workplace: Workplace) -> Path:
    """The local folder of a model, downloaded if need be, with all that loading needs and the wanted fingerprint.

    Raises:
        TaskFailed: BadModel, the folder or a file of it is missing, or it is another model than the task says.
    """
    scheme = urlparse(model.source).scheme
    folder = {"file": _local, "hf": _from_hub, "s3": _from_urls}[scheme](model, workplace)
    _check(folder)
    if model.fingerprint is not None and (found := fingerprint(folder)) != model.fingerprint:
        msg = f"the model in {folder} has fingerprint {found}, the run's is {model.fingerprint}: give every site the same model files"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    return folder


def fingerprint(folder: Path) -> str:
    """A quick hash of the model's content: of config.json and, for every weight file, name, size, header and ends.

    It reads at most about 2 MiB and the header of each file, so it tells models and revisions apart in milliseconds; it is
    no defence against somebody who changes the middle of a file on purpose.
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
    """The checkpoint's tensors: type by key, as safetensors names them."""
    keys: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys |= {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 - no mapping
    return keys


def checkpoint_dtype(folder: Path) -> torch.dtype:
    """The type that most tensors of the checkpoint have, out of those that models are saved in."""
    counts = Counter(_DTYPES[name] for name in checkpoint_keys(folder).values() if name in _DTYPES)
    return counts.most_common(1)[0][0] if counts else torch.float32


def _local(model: Model, _workplace: Workplace) -> Path:
    return Path(unquote(urlparse(model.source).path))


def _from_hub(model: Model, _workplace: Workplace) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - nothing of a hub is loaded for a local source
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415 - likewise

    match = _HUB.match(model.source)
    if match is None:
        msg = f"{model.source} is not of the form hf://organisation/name@revision"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    try:
        return Path(snapshot_download(match["repository"], revision=match["revision"], allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        msg = f"cannot fetch {model.source} from the hub: {error}"
        raise TaskFailed(FailureReason.TRANSFER_FAILED, msg) from error


def _from_urls(model: Model, workplace: Workplace) -> Path:
    if not model.files:
        msg = f"the task names no files for {model.source}: `model.files` must give a URL for each file of the folder"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    folder = workplace.cache / "models" / hashlib.sha256(f"{model.source} {model.revision}".encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for name, url in sorted(model.files.items()):
        if Path(name).name != name:
            raise TaskFailed(FailureReason.BAD_MODEL, f"model file {name!r} of {model.source} is not a plain file name")
        if not (folder / name).is_file():
            workplace.download(url, folder / name, None)
    return folder


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise TaskFailed(FailureReason.BAD_MODEL, f"there is no model folder {folder} at this site")
    missing = None
    if not (folder / "config.json").is_file():
        missing = "config.json"
    elif not any(folder.glob("*.safetensors")):
        missing = "model.safetensors (only safetensors checkpoints are read)"
    elif not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        missing = "tokenizer.json (nor any of the older tokenizer files)"
    if missing:
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model folder {folder} has no {missing}")
    closed = sorted(path.name for path in folder.iterdir() if path.is_file() and not os.access(path, os.R_OK))
    if closed:
        who = f"the trainer (user {os.getuid()})"
        msg = f"{who} may not read {', '.join(closed)} of the model folder {folder}: make them readable (chmod a+r)"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
