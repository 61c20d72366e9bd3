"""What the clock and the tables know of the sites' data, stored beside the results: so a table needs neither the data nor the model."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from configuration import Problem
from task import Partition, Task, load_task, partition

FILE: Final = Path(__file__).with_name("site_data.json")


@dataclass(frozen=True)
class SiteData:
    """A site's training rows."""

    samples: int
    mean_tokens: float
    longest_tokens: int


def data_of(task: Task, split: Partition) -> tuple[SiteData, ...]:
    """Of each site of a partition."""
    lengths = [[len(task.train[row].input_ids) for row in rows] for rows in split.rows]
    return tuple(SiteData(len(one), sum(one) / len(one), max(one)) for one in lengths)


def stored_data(problem: Problem, sites: int) -> tuple[SiteData, ...] | None:
    """What is stored of so many sites; None before `keep_data`."""
    found = _stored().get(_key_of(problem, sites))
    return None if found is None else tuple(SiteData(**one) for one in found)


def keep_data(problem: Problem, sites: int) -> None:
    """Store what the tables need to know of these sites, if it is not stored yet."""
    stored, key = _stored(), _key_of(problem, sites)
    if key in stored:
        return
    task = load_task(problem)
    stored[key] = [asdict(one) for one in data_of(task, partition(task, problem, sites))]
    _write(stored)


def _write(stored: dict[str, Sequence[dict[str, Any]]]) -> None:
    partial = FILE.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.rename(FILE)


def _stored() -> dict[str, Sequence[dict[str, Any]]]:
    found: dict[str, Sequence[dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    return found


def _key_of(problem: Problem, sites: int) -> str:
    """All that the partition depends on."""
    spread = "IID" if problem.dirichlet_alpha is None else f"Dirichlet {problem.dirichlet_alpha:g}"
    tiers = "correlated" if problem.slow_sites_own_classes else "independent"
    return f"{problem.data} at {problem.max_length} tokens, {sites} sites, {spread}, {tiers}, seed {problem.seed}"
