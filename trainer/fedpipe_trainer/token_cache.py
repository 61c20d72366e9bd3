"""The token ids of a large data file, encoded once for a site: later rounds map them from its cache volume and read no row.

A mapped file takes memory only for the samples of a step, so data of more tokens than memory holds can be trained on. A file is found by
the content of what it was made from (the data, the objective, the policy, the tokenizer) within the namespace of the run, so none is used
for other data, and none by another tenant. Whatever goes wrong with the cache costs the time to encode again.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedpipe_trainer.atomic_file import atomic_file
from fedpipe_trainer.cache_volume import advice
from fedpipe_trainer.contract import TrainTask
from fedpipe_trainer.data import Examples, Tokenizer, blocks_of

_FORMAT: Final = 3
"""Increased when files of an earlier version must not be used any more."""
_LIBRARIES: Final = ("transformers", "tokenizers")
_LEAST_TOKENS: Final = 1_000_000
"""Fewer are encoded in seconds, and kept in memory by a process that trains several rounds."""
_MOST_OF_FREE_SPACE: Final = 0.25
_MOST_FILES: Final = 8
_UNUSED_SECONDS: Final = 30 * 86400.0
_ALIGNMENT: Final = 64
_READ_BYTES: Final = 2**20
_MOST_HEADER_BYTES: Final = 2**16

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedData:
    """The samples of a data file, and how many of its rows were left out."""

    examples: Examples
    skipped_rows: int
    dropped_rows: int


class TokenCache:
    """The kept tokens of one task's training data."""

    def __init__(self, folder: Path, task: TrainTask) -> None:
        """Hash the data.

        Args:
            folder: where the site keeps tokens; it need not exist.
            task: its data, objective, policy and namespace count.
        """
        self._folder = folder
        parts = [_FORMAT, task.run.namespace, task.objective.to_json(), task.policy.to_json(), *map(version, _LIBRARIES)]
        try:
            self._data = hashlib.sha256(json.dumps([*parts, _digest_of(Path(task.data.train))]).encode()).hexdigest()[:32]
        except OSError:  # whoever reads the rows says so
            self._data = ""

    def may_hit(self) -> bool:
        """Whether tokens of this data are kept, if of this tokenizer is another question."""
        return bool(self._data) and any(self._folder.glob(f"{self._data}-*"))

    def read(self, tokenizer: Tokenizer) -> EncodedData | None:
        """The kept tokens, mapped from their file; None if there are none that can be used."""
        path = self._path(tokenizer)
        try:
            found = _read(path)
            with suppress(OSError):  # a read-only volume, where nothing is removed
                os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            _LOG.warning("the kept tokens %s cannot be used, the data is encoded again: %s", path, type(error).__name__)
            return None
        return found

    def write(self, tokenizer: Tokenizer, encoded: EncodedData) -> EncodedData:
        """Keep the tokens if they are many; what is returned is mapped from the file then, and takes no memory."""
        if not self._data or encoded.examples.tokens < _LEAST_TOKENS:
            return encoded
        path = self._path(tokenizer)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _make_room(self._folder)
            if encoded.examples.nbytes > _MOST_OF_FREE_SPACE * shutil.disk_usage(self._folder).free:
                _LOG.info("the tokens of the data are not kept: they would take more than a quarter of the free space of %s", self._folder)
                return encoded
            _write(path, encoded)
            return _read(path)
        except OSError as error:
            problem = f"cannot write to {self._folder} ({error.strerror}): {advice(error)}"
            _LOG.warning("the tokens of the data are not kept, the next round encodes it again: %s", problem)
            return encoded

    def _path(self, tokenizer: Tokenizer) -> Path:
        return self._folder / f"{self._data}-{_identity(tokenizer)}.tokens"


def _digest_of(path: Path) -> str:
    """A hash of the content of a file, or of the names and contents of a folder's files."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"\n{file.relative_to(path)} {file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            for piece in iter(lambda content=content: content.read(_READ_BYTES), b""):  # type: ignore[misc]  # bound in the loop
                digest.update(piece)
    return digest.hexdigest()


def _identity(tokenizer: Tokenizer) -> str:
    """A hash of all that decides over the token ids of a text."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if hasattr(backend, "to_str") else repr(tokenizer)
    parts = [vocabulary, repr(tokenizer.chat_template), repr(sorted(tokenizer.special_tokens_map.items())), type(tokenizer).__name__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _make_room(folder: Path) -> None:
    """Remove files that were not used for a month, and the oldest ones until one more is within the limit."""
    by_age = sorted(folder.glob("*.tokens"), key=lambda file: -file.stat().st_mtime)
    for number, file in enumerate(by_age):
        if number >= _MOST_FILES - 1 or time.time() - file.stat().st_mtime > _UNUSED_SECONDS:
            with suppress(OSError):  # another task has removed it
                file.unlink()


def _write(path: Path, encoded: EncodedData) -> None:
    """One line of JSON that says what follows, then the arrays, each at a multiple of `_ALIGNMENT` bytes."""
    arrays = encoded.examples.arrays
    header = {"skipped": encoded.skipped_rows, "dropped": encoded.dropped_rows, "arrays": [[one.dtype.str, one.size] for one in arrays]}
    with atomic_file(path) as file:
        file.write(json.dumps(header).encode() + b"\n")
        for one in arrays:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            for part in blocks_of(one):
                file.write(part.data)


def _read(path: Path) -> EncodedData:
    with path.open("rb") as file:
        line = file.readline(_MOST_HEADER_BYTES)
        header = json.loads(line)
    mapped = np.memmap(path, mode="r", dtype=np.uint8)
    arrays = list(_arrays(mapped, len(line), header["arrays"]))
    return EncodedData(Examples.of_arrays(arrays), int(header["skipped"]), int(header["dropped"]))


def _arrays(mapped: NDArray[np.uint8], at: int, described: Sequence[tuple[str, int]]) -> Iterator[NDArray[Any]]:
    """The arrays of a file, as views of it.

    Raises:
        ValueError: the file is cut short.
    """
    for dtype, size in described:
        at += -at % _ALIGNMENT
        end = at + size * np.dtype(dtype).itemsize
        if end > mapped.size:
            raise ValueError("the file is cut short")
        yield mapped[at:end].view(dtype)
        at = end
