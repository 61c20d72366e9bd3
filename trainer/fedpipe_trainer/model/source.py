"""Resolves the model source of a task to a verified local folder. Only an `hf://` source accesses a hub."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import torch

from fedpipe_trainer.activation_store import FOLDER as ACTIVATIONS
from fedpipe_trainer.activation_store import remove_unused
from fedpipe_trainer.atomic_file import atomic_file
from fedpipe_trainer.contract import FailureReason, Model
from fedpipe_trainer.contract.task import COMMIT_PATTERN
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.model.download_cache import Download, download_once
from fedpipe_trainer.model.etag import confirms
from fedpipe_trainer.model.files import check_files, other_weights, read_header, weight_files
from fedpipe_trainer.model.identity import VOCABULARIES, fingerprint, loaded_files
from fedpipe_trainer.task_runtime import TaskRuntime
from fedpipe_trainer.transfer import describe

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB_FILES: Final = ("*.json", "*.safetensors", "*.txt", "*.jinja", *VOCABULARIES)
_TOKENIZERS_OF_BYTES: Final = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")
"""Classes without a vocabulary: a token is a byte or a character."""
_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MODELS: Final = "models"
_HASHES: Final = "hashes"
_COMMIT: Final = re.compile(COMMIT_PATTERN)
_ACCESS: Final = "huggingFaceTokenSecretRef (of the EdgeSite, or the chart's value)"
_LOG = logging.getLogger(__name__)
_HUB = re.compile(r"^hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>.+))?$")


def fetch(model: Model, runtime: TaskRuntime, *, hashes: bool = True) -> Path:
    """The local folder of a model, downloaded if necessary, with all files that loading needs and the expected fingerprint.

    A downloaded model with another fingerprint is downloaded once again: bytes may have changed on their way, or on the cache volume.
    Without `hashes` no file is read whole, and the fingerprint is not compared.

    Raises:
        TaskFailed: BadModel, the folder or one of its files is missing, or the fingerprint is not the task's; TransferFailed.
    """
    scheme = model.source.partition(":")[0]
    folder = {"file": _local, "hf": _from_hub, "s3": _from_urls}[scheme](model, runtime)
    check_folder(folder)
    if not hashes:
        return folder
    actual = fingerprint(folder, runtime.cache / _HASHES)
    if model.fingerprint not in {None, actual}:
        changed = f"the files of {model.source} have changed since the run was planned, or are others at this site: start a new run"
        fix = "use the same weights, config.json and tokenizer files at every site" if scheme == "file" else changed
        msg = f"the model in {folder} has fingerprint {actual}, the run's is {model.fingerprint}: {fix}"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    return folder


def _is_expected(model: Model, runtime: TaskRuntime, folder: Path) -> bool:
    """Whether the model in this folder has the task's fingerprint, or the task has none."""
    return model.fingerprint is None or fingerprint(folder, runtime.cache / _HASHES) == model.fingerprint


def checkpoint_keys(folder: Path) -> dict[str, str]:
    """The type of each tensor of the checkpoint, by key, as named by safetensors."""
    return {name: info.dtype for path in weight_files(folder) for name, info in read_header(path).items()}


def checkpoint_dtype(folder: Path) -> torch.dtype:
    """The most frequent type among the tensors of the checkpoint: float32, float16 or bfloat16."""
    counts = Counter(_DTYPES[name] for name in checkpoint_keys(folder).values() if name in _DTYPES)
    return counts.most_common(1)[0][0] if counts else torch.float32


def _local(model: Model, _runtime: TaskRuntime) -> Path:
    return local_folder(model.source)


def local_folder(source: str) -> Path:
    """The folder that a `file://` source names: as it is written, since people write paths; else as a URL, as the operator writes it."""
    written = source.removeprefix("file://")
    return Path(written) if Path(written).is_dir() else Path(unquote(written))


def _from_hub(model: Model, runtime: TaskRuntime) -> Path:
    from huggingface_hub import HfApi  # noqa: PLC0415 - a local source needs no hub client

    api, (repository, revision) = HfApi(), split_hub_source(model.source)
    commit = model.commit or _commit_of(model, revision, api, runtime)

    def into(folder: Path) -> Mapping[str, str]:
        with hub_errors(model.source):
            info = api.model_info(repository, revision=commit, files_metadata=True)
            files = [file for file in info.siblings or [] if any(fnmatch(file.rfilename, pattern) for pattern in HUB_FILES)]
            files = [file for file in files if "/" not in file.rfilename]
            for file in files:
                api.hf_hub_download(repository, file.rfilename, revision=commit, local_dir=folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        return {file.rfilename: f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}" for file in files}

    key = hashlib.sha256(f"hf://{repository}@{commit}".encode()).hexdigest()[:16]
    return _download_once(Download(model.source, key, commit, into, partial(_is_expected, model, runtime)), runtime)


def split_hub_source(source: str) -> tuple[str, str | None]:
    """The repository and the revision of an `hf://` source.

    Raises:
        TaskFailed: BadModel, it has another form.
    """
    match = _HUB.match(source)
    if match is None:
        raise TaskFailed(FailureReason.BAD_MODEL, f"{source} does not have the form hf://organisation/name@revision")
    return match["repository"], match["revision"]


def commit_of(model: Model, runtime: TaskRuntime) -> str:
    """The commit that the revision of an `hf://` source names, as `fetch` finds it.

    Raises:
        TaskFailed: BadModel, TransferFailed.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - a local source needs no hub client

    return _commit_of(model, split_hub_source(model.source)[1], HfApi(), runtime)


def _commit_of(model: Model, revision: str | None, api: "HfApi", runtime: TaskRuntime) -> str:
    """The commit that a branch or tag of the hub names now, or named when the site last asked if the hub does not answer."""
    if revision is not None and _COMMIT.match(revision):
        return revision
    name = f"{hashlib.sha256(model.source.encode()).hexdigest()[:16]}.commit"
    known = runtime.cache / _MODELS / name
    try:
        with hub_errors(model.source):
            commit = str(api.model_info(model.source.removeprefix("hf://").partition("@")[0], revision=revision).sha)
    except TaskFailed as failed:
        remembered = _read_commit(known)
        if remembered is None:
            raise
        _LOG.warning("%s: the commit of the last download is used", failed.message)
        return remembered
    with suppress(OSError):  # a cache that cannot be written: the next task asks again
        known.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(known) as file:
            file.write(commit.encode())
    return commit


def _read_commit(path: Path) -> str | None:
    """The commit in this file; None if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return text if _COMMIT.fullmatch(text) else None


@contextmanager
def hub_errors(source: str) -> Iterator[None]:
    """Raise errors of the hub and of the network as TransferFailed, and as BadModel what another attempt would not change."""
    import httpx2  # noqa: PLC0415 - the hub client's HTTP library; a local source needs neither
    from huggingface_hub import errors  # noqa: PLC0415 - likewise

    try:
        yield
    except errors.GatedRepoError as error:
        token = "its token has no access" if os.environ.get("HF_TOKEN") else "this site has no token"
        advice = (
            "accept its terms on the hub, and name a Secret with the token of that account in huggingFaceTokenSecretRef of the EdgeSite"
        )
        raise TaskFailed(FailureReason.BAD_MODEL, f"{source} is gated, and {token}: {advice}, or in that value of the chart") from error
    except errors.RevisionNotFoundError as error:
        raise TaskFailed(
            FailureReason.BAD_MODEL, f"the hub has {source.partition('@')[0]}, but no revision of this name: {source}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        hidden = f"or it is private, and no token by {_ACCESS} may read it"
        raise TaskFailed(FailureReason.BAD_MODEL, f"the hub has no {source}, {hidden}: correct model.source or the token") from error
    except errors.OfflineModeIsEnabled as error:
        msg = f"HF_HUB_OFFLINE forbids to ask the hub for {source}, which this site's cache does not have: remove it, or use pvc://"
        raise TaskFailed(FailureReason.TRANSFER_FAILED, msg) from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
        msg = f"cannot fetch {source} from the hub: {error}"
        raise TaskFailed(FailureReason.TRANSFER_FAILED, msg) from error


def _from_urls(model: Model, runtime: TaskRuntime) -> Path:
    if not model.files:
        msg = f"the task has no file URLs for {model.source}: `model.files` must have a URL for each file of the model folder"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    for name in model.files:
        if Path(name).name != name:
            raise TaskFailed(FailureReason.BAD_MODEL, f"model file {name!r} of {model.source} is not a plain file name")

    def into(folder: Path) -> Mapping[str, str]:
        for name, url in sorted(model.files.items()):
            if not (folder / name).is_file():
                runtime.download(url, folder / name, None)
            if name in model.etags and model.fingerprint is None and not confirms(model.etags[name], folder / name):
                _compare_with_another_copy(model, name, folder / name, runtime)
        return {name: f"size:{size}" for name, size in model.sizes.items()}

    key = hashlib.sha256(f"{model.source} {model.revision}".encode()).hexdigest()[:16]
    return _download_once(Download(model.source, key, None, into, partial(_is_expected, model, runtime)), runtime)


def _compare_with_another_copy(model: Model, name: str, path: Path, runtime: TaskRuntime) -> None:
    """Download a file again that its ETag does not confirm. If two copies are the same, the ETag is not made of MD5s.

    Raises:
        TaskFailed: TransferFailed, the two differ, and the ETag does not confirm the second one either.
    """
    first = describe(path).sha256
    path.unlink()  # there may be no room for both
    runtime.download(model.files[name], path, None)
    if describe(path).sha256 != first and not confirms(model.etags[name], path):
        path.unlink()
        msg = f"{name} of {model.source} arrived with other content at each of two downloads, neither as the bucket has it: try again"
        raise TaskFailed(FailureReason.TRANSFER_FAILED, msg)


def _download_once(download: Download, runtime: TaskRuntime) -> Path:
    return download_once(
        runtime.cache / _MODELS,
        runtime.folder,
        download,
        hashes=runtime.cache / _HASHES,
        make_room=partial(remove_unused, runtime.cache / ACTIVATIONS),
        stop_requested=runtime.stop_requested,
    )


def check_folder(folder: Path) -> None:
    """Check that a model folder has what loading needs.

    Raises:
        TaskFailed: BadModel, something is missing or may not be read.
    """
    if not folder.is_dir():
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model folder {folder} does not exist at this site")
    if not (folder / "config.json").exists():
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model folder {folder} has no config.json{other_weights(folder)}")
    unreadable = sorted(path.name for path in folder.iterdir() if path.is_file() and not os.access(path, os.R_OK))
    if unreadable:
        user = f"the trainer (user {os.getuid()})"
        msg = f"{user} may not read {', '.join(unreadable)} of the model folder {folder}: make them readable (chmod a+r)"
        raise TaskFailed(FailureReason.BAD_MODEL, msg)
    names = loaded_files(folder)
    check_files(folder, names)
    if (
        not any(fnmatch(name, pattern) for name in names for pattern in VOCABULARIES)
        and _tokenizer_class(folder) not in _TOKENIZERS_OF_BYTES
    ):
        missing = "tokenizer.json (and none of the older tokenizer files)"
        raise TaskFailed(FailureReason.BAD_MODEL, f"the model folder {folder} has no {missing}")


def _tokenizer_class(folder: Path) -> str:
    """The class that tokenizer_config.json names; empty if it names none."""
    path = folder / "tokenizer_config.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return str(document.get("tokenizer_class", "")) if isinstance(document, dict) else ""
