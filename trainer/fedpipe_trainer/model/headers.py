"""A base without its weights, for what needs no more than names and shapes: of files on a volume itself, else a hollow copy.

A hollow copy has the header of each safetensors file and, where the tensors would be, a hole that takes no room on the disk.
"""

import struct
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlparse

from fedpipe_trainer import transfer
from fedpipe_trainer.contract import FailureReason, Model
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.checkpoint import LENGTH_BYTES
from fedpipe_trainer.model.source import HUB_FILES, check_folder, fetch, hub_errors, split_hub_source
from fedpipe_trainer.task_runtime import TaskRuntime

_MAX_HEADER: Final = 100_000_000
_WEIGHTS: Final = ".safetensors"


class Headers(NamedTuple):
    """A model folder of which only the headers of its weights are certain to be there."""

    folder: Path
    is_hollow: bool
    fetched_bytes: int
    """Of the whole model, where it would be downloaded."""


def fetch_headers(model: Model, runtime: TaskRuntime) -> Headers:
    """The folder of a model: as it is where it is on a volume; else with hollow weights.

    Raises:
        TaskFailed: BadModel, a file is missing or is no safetensors file; TransferFailed.
    """
    scheme = urlparse(model.source).scheme
    if scheme == "file":
        return Headers(fetch(model.model_copy(update={"fingerprint": None}), runtime, hashes=False), is_hollow=False, fetched_bytes=0)
    folder = runtime.folder / "headers"
    folder.mkdir()
    fetched = _of_hub(model, folder) if scheme == "hf" else _of_urls(model, folder, runtime)
    check_folder(folder)
    return Headers(folder, is_hollow=True, fetched_bytes=fetched)


def _of_urls(model: Model, folder: Path, runtime: TaskRuntime) -> int:
    for name, url in sorted(model.files.items()):
        if Path(name).name != name:
            raise TaskFailed(FailureReason.BAD_MODEL, f"model file {name!r} of {model.source} is not a plain file name")
        if name.endswith(_WEIGHTS):
            _write_hollow(folder / name, partial(transfer.read_range, url), model.sizes.get(name, 0))
        elif any(fnmatch(name, pattern) for pattern in HUB_FILES):
            runtime.download(url, folder / name, None)
    return sum(model.sizes.values())


def _of_hub(model: Model, folder: Path) -> int:
    from huggingface_hub import HfApi, hf_hub_url  # noqa: PLC0415 - a local source needs no hub client

    (repository, revision), api, total = split_hub_source(model.source), HfApi(), 0
    with hub_errors(model.source):
        info = api.model_info(repository, revision=model.commit or revision, files_metadata=True)
        for file in info.siblings or []:
            name = file.rfilename
            if "/" in name or not any(fnmatch(name, pattern) for pattern in HUB_FILES):
                continue
            total += file.size or 0
            if name.endswith(_WEIGHTS):
                _write_hollow(folder / name, partial(_read_hub, hf_hub_url(repository, name, revision=info.sha)), file.size or 0)
            else:
                api.hf_hub_download(repository, name, revision=info.sha, local_dir=folder)
    return total


def _read_hub(url: str, offset: int, length: int) -> bytes:
    from huggingface_hub.utils._headers import build_hf_headers  # noqa: PLC0415 - as above
    from huggingface_hub.utils._http import get_session  # noqa: PLC0415 - as above

    headers = {**build_hf_headers(), "Range": f"bytes={offset}-{offset + length - 1}"}
    response = get_session().get(url, headers=headers, follow_redirects=True)
    response.raise_for_status()
    return bytes(response.content[:length])


def _write_hollow(path: Path, read: Callable[[int, int], bytes], size: int) -> None:
    """Write the header of a safetensors file of this size; `read` gives so many bytes from an offset."""
    start = read(0, LENGTH_BYTES)
    length = struct.unpack("<Q", start)[0] if len(start) == LENGTH_BYTES else -1
    if not 0 < length <= _MAX_HEADER:
        msg = f"{path.name} is no safetensors file: copy it again; a git-lfs pointer is fetched by `git lfs pull`"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    with path.open("wb") as file:
        file.write(start + read(LENGTH_BYTES, length))
        file.truncate(max(size, file.tell()))
