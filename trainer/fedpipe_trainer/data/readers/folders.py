"""Folders as data: shards of parquet, and what `datasets` saves to disk. Of the files, none is missing and none too many."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from fedpipe_trainer.data.readers.record import MIB, bad_data

_SHARD: Final = re.compile(r"^(?P<name>.*)-(?P<at>\d{5})-of-(?P<count>\d{5})\.(parquet|arrow)$")
_SPLIT: Final = re.compile(r"(?<![a-z])(train|training|validation|valid|val|dev|test|testing|eval)(?![a-z])")
_LONGEST_STATE: Final = 16 * MIB
SAVED_STATE: Final = "state.json"
SAVED_SPLITS: Final = "dataset_dict.json"


def files_of(path: Path) -> list[Path]:
    """The files that are read for this path of data: itself, those of a folder, or those of a pattern such as `data/train-*.parquet`.

    Raises:
        TaskFailed: BadData, it is a folder that cannot be used as data.
        OSError: it cannot be read.
    """
    if "*" in path.name and not path.exists():
        return _complete(_visible(path.parent.glob(path.name)), path)
    if not path.is_dir():
        return [path]
    if (path / SAVED_SPLITS).exists():
        raise bad_data(f"the folder {path} has the splits of a dataset: name the folder of one of them")
    if (path / SAVED_STATE).exists():
        return _saved_files(path)
    return _complete(_visible(path.iterdir()), path)


def _visible(found: Iterable[Path]) -> list[Path]:
    """Those that are not hidden, nor a writer's own, such as `_SUCCESS`."""
    return sorted(path for path in found if not path.name.startswith((".", "_")))


def _complete(found: Sequence[Path], path: Path) -> list[Path]:
    """The shards among these files: all of one set, and no other file of data beside them."""
    shards = [file for file in found if file.suffix.lower() == ".parquet"]
    if not shards:
        raise bad_data(f"the folder {path} has no data: it holds neither files .parquet nor a dataset that was saved to disk")
    if any(child.is_dir() and any(child.glob("*.parquet")) for child in found):
        raise bad_data(f"the folder {path} has files .parquet, and folders with more of them: name a folder that has all")
    sets = {(match["name"], int(match["count"])) if (match := _SHARD.match(file.name)) else None for file in shards}
    splits = {frozenset(_SPLIT.findall(file.name.lower())) for file in shards}
    if len(sets) > 1 or len(splits) > 1:
        advice = "name those of one by a pattern, such as train-*.parquet, or put them into a folder of their own"
        raise bad_data(f"the folder {path} has files of several sets: {advice}")
    if (count := next((one[1] for one in sets if one), len(shards))) != len(shards):
        raise bad_data(f"the folder {path} has {len(shards)} of the {count} shards that their names promise: copy it whole")
    return shards


def _saved_files(folder: Path) -> list[Path]:
    """The files that the folder's state names, in this order."""
    state = folder / SAVED_STATE
    try:
        with state.open("rb") as file:
            names = [entry["filename"] for entry in json.loads(file.read(_LONGEST_STATE))["_data_files"]]
        files = [folder / name for name in names if Path(name).name == name]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise bad_data(f"the folder {folder} was not saved by the datasets library, or is damaged: {SAVED_STATE} names no files") from None
    if not files or len(files) < len(names) or not all(file.is_file() for file in files):
        raise bad_data(f"the folder {folder} lacks some of the {len(names)} files that its {SAVED_STATE} names: copy it whole")
    return files
