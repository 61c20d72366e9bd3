"""Names of the run and its sites, and where a claim's folder has the data: told by the files that the user gave. Pure."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

MODELS: Final = "models"
"""The claim of models."""
HELD_OUT: Final = "split"
"""The folder in a site's claim with what was held out; only what `fedpipe init` writes is in it."""
_LONGEST: Final = 40
_PART_NAMES: Final = frozenset({"train", "training", "data", "dataset", "rows"})
"""Names of files that say nothing of what is in them: then their folder's does."""
_ENDS: Final = re.compile(r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.gz|\.zst)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    """A link in the folder of a claim."""

    path: Path
    target: Path


def slug(text: str, default: str) -> str:
    """A name of Kubernetes objects made of a text: lower-case letters, digits and dashes, a letter first."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-").lstrip("0123456789-")[:_LONGEST].strip("-")
    return name or default


def title_of(path: Path) -> str:
    """What data are called: the file without its end, or its folder where the file's name says only that it is for training."""
    stem = _ENDS.sub("", path.name)
    return path.parent.name if stem.lower().rstrip("-*_0123456789") in _PART_NAMES else stem


def site_names(paths: Sequence[Path], given: Sequence[str]) -> list[str]:
    """A name for each site: those given, or made of the data's; of the same ones, all but the first get a number."""
    names: list[str] = []
    for wanted in given or [slug(title_of(path), "site") for path in paths]:
        free = (f"{wanted}-{number}" for number in count(2))
        names.append(wanted if wanted not in names else next(name for name in free if name not in names))
    return names


def path_in_claim(part: str, source: Path, *, is_folder: bool) -> str:
    """Where a link to the data stands within the claim's folder, and how they are named from there.

    Args:
        part: train or validation.
        source: a file, a folder, or the pattern of the shards in one.
        is_folder: whether it is a folder, which may be called as a file is.
    """
    if "*" in source.name:
        return f"{part}/{source.name}"
    end = _ENDS.search(source.name)
    return f"{part}{end[0].lower()}" if end and not is_folder else part


def link_of(folder: Path, path: str, source: Path) -> Link:
    """The link that makes the data of this absolute path appear at `path` within a claim's folder."""
    is_pattern = "*" in source.name
    return Link(folder / path.partition("/")[0], source.parent if is_pattern else source)
