"""The identity of a base model: a hash of every byte that loading it reads, of the weights and of the tokenizer.

A file is read once: SHA-256 takes about a second a GB, and a Job would spend that at every start. What is known of a file counts
as long as its size and times are the same: for this process, and in a folder of the site's cache volume for all its Jobs. The
time of the last change of status (ctime) is compared, too: other than that of the last modification, it cannot be set, so that a copy which
keeps times, or another volume at the same path, is hashed again: a volume restored from a backup costs one hashing of each file.

A site without a cache volume hashes the model in every Job. Nothing less is safe, because models fine-tuned from the same one may differ
in a few layers in the middle; and the bytes are in memory then, where the load that follows needs them.
"""

import hashlib
import logging
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from fedpipe_trainer.cache_volume import advice
from fedpipe_trainer.kept_files import read_kept, write_kept

VOCABULARIES: Final = (
    *("tokenizer.json", "*.model", "*.spm", "*.codes", "*.tiktoken", "*.tokenizer", "*vocab*.json", "vocab.txt", "merges.txt", "dict.txt"),
    *("tekken.json", "word_shape.json", "word_pronunciation.json", "normalizer.json", "emoji.json", "byte_maps.json"),
)
"""Patterns of the names of the vocabularies of transformers' tokenizers."""
_LOADED: Final = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
    *VOCABULARIES,
)
"""Patterns of the names of the files that transformers reads from a model's folder."""
_TEMPLATES: Final = "additional_chat_templates"
"""The folder with templates beside the tokenizer's own."""

_LOG = logging.getLogger(__name__)


class _Hash(BaseModel):
    """The SHA-256 of a file, and what it is valid for."""

    model_config = ConfigDict(frozen=True)

    size: int
    modified: int
    """Nanoseconds, as `changed`."""
    changed: int
    sha256: str


_known: dict[Path, _Hash] = {}
"""What this process knows, by file."""


def fingerprint(folder: Path, kept: Path | None = None) -> str:
    """The SHA-256 of what `sha256sum` prints for the files of this folder that loading reads, sorted by name.

    It does not depend on where the folder is, nor on files that are not loaded, such as README.md.

    Args:
        folder: the model's folder.
        kept: the folder on the site's cache volume that has the hashes of its files; None: only this process keeps them.

    Raises:
        OSError: a file cannot be read.
    """
    lines = [f"{sha256_of(folder / name, kept)}  {name}\n" for name in loaded_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def loaded_files(folder: Path) -> tuple[str, ...]:
    """The files that loading the model and its tokenizer reads, by name within the folder, sorted."""
    names = [path.name for path in folder.iterdir() if path.is_file() and any(fnmatch(path.name, one) for one in _LOADED)]
    templates = [f"{_TEMPLATES}/{path.name}" for path in (folder / _TEMPLATES).glob("*.jinja") if path.is_file()]
    return tuple(sorted([*names, *templates]))


def remember(path: Path, sha256: str, kept: Path | None = None) -> None:
    """Take this as the file's hash, because it was computed just now; `kept` as in `fingerprint`."""
    _known[path] = _describe(path, sha256)
    if kept:
        _write(_record(path, kept), _known[path])


def sha256_of(path: Path, kept: Path | None) -> str:
    """The SHA-256 of a file, which is read only if its size or times are not those for which the hash is known; `kept` as in `fingerprint`.

    Raises:
        OSError: the file cannot be read.
    """
    record = _record(path, kept) if kept else None
    for known in (_known.get(path), _read(record) if record else None):
        if known is not None and known == _describe(path, known.sha256):
            _known[path] = known
            return known.sha256
    before = _describe(path, "")
    with path.open("rb") as file:
        found = before.model_copy(update={"sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    _known[path] = found
    if record:
        _write(record, found)
    return found.sha256


def _record(path: Path, kept: Path) -> Path:
    return kept / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"


def _describe(path: Path, sha256: str) -> _Hash:
    stat = path.stat()
    return _Hash(size=stat.st_size, modified=stat.st_mtime_ns, changed=stat.st_ctime_ns, sha256=sha256)


def _read(record: Path) -> _Hash | None:
    try:
        return _Hash.model_validate_json(read_kept(record))
    except (OSError, ValidationError):  # there is none, or a damaged one: the file is hashed again
        return None


def _write(record: Path, found: _Hash) -> None:
    try:
        write_kept(record, found.model_dump_json().encode())
    except OSError as error:
        problem = f"cannot write to {record.parent} ({error.strerror}): {advice(error)}"
        _LOG.warning("the hash of the model is not kept, the next task computes it again: %s", problem)
