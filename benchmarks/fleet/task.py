"""The model and the data, loaded and tokenised once for all runs of a process."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from configuration import E2E, NEWSGROUPS, Problem
from ingredients.e2e import e2e_rows, restaurant
from ingredients.models import model_folder
from ingredients.newsgroups import newsgroups
from ingredients.packages import cache_folder
from ingredients.splitting import Shares, balanced_sample, dirichlet_shares, split_rows
from ingredients.tables import Row

from fedpipe_trainer.contract import Bits, CausalLM, Objective, SequenceClassification, WeightShape
from fedpipe_trainer.data import Example, encode
from fedpipe_trainer.model import Base
from fedpipe_trainer.model.architecture import target_weights
from fedpipe_trainer.model.base import load

CACHE: Final = cache_folder()
MODELS: Final = {NEWSGROUPS: "minilm", E2E: "smollm2"}
"""By data: the base model, a folder of the cache."""
SLOW_CLASSES: Final = 6
_SLOW_SITES: Final = 2
"""Sites of the slowest tier: the last ones."""
TEST_DOCUMENTS: Final = 1000
_TEST_SENTENCES: Final = 200
VALIDATION: Final = 40
"""Rows that a site holds out, at most a fifth of its rows."""
_EVEN: Final = 1e6
"""A Dirichlet concentration at which all sites have the same distribution."""


@dataclass(frozen=True)
class Task:
    """A base model with tokenised data."""

    base: Base
    objective: Objective
    weights: tuple[WeightShape, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]
    classes: tuple[str, ...]
    """Of the training rows: what is spread unevenly over the sites."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classification."""
        return self.objective.labels if isinstance(self.objective, SequenceClassification) else ()

    @property
    def layers(self) -> int:
        """Number of layers with target weights."""
        return 1 + max(weight.layer for weight in self.weights)


@dataclass(frozen=True)
class Partition:
    """The rows of each site, and the classes whose accuracy is reported apart."""

    rows: tuple[tuple[int, ...], ...]
    """Training rows."""
    validation: tuple[tuple[int, ...], ...]
    """Rows that the sites evaluate the global adapter on."""
    slow_classes: frozenset[int]
    """Their numbers, in the order of the classes."""


def load_task(problem: Problem, bits: Bits = 16) -> Task:
    """The base model, at so many bits, and the data of this problem."""
    return _load(problem.data, problem.max_length, bits)


@lru_cache(maxsize=1)
def _load(data: str, max_length: int, bits: Bits) -> Task:
    return _LOADERS[data](max_length, bits)


def objective_of(data: str, max_length: int, labels: tuple[str, ...]) -> Objective:
    """What is learnt from this data."""
    if data == E2E:
        return CausalLM(prompt="{mr}\n", response="{ref}", max_length=max_length)
    return SequenceClassification(text="text", label="label", labels=labels, max_length=max_length)


def rows_of(data: str) -> tuple[list[Row], list[Row]]:
    """The rows for training and for tests.

    Raises:
        SystemExit: E2E_DATA does not name the folder of E2E's files, which cannot be redistributed.
    """
    return newsgroups(CACHE) if data == NEWSGROUPS else (_e2e_rows("devset.csv"), _e2e_rows("testset_w_refs.csv"))


def _newsgroups(max_length: int, bits: Bits) -> Task:
    """MiniLM, 20 Newsgroups, a fixed test subset of 1,000 documents."""
    train, test = rows_of(NEWSGROUPS)
    labels = tuple(sorted({row["label"] for row in train}))
    test = [test[i] for i in balanced_sample([row["label"] for row in test], TEST_DOCUMENTS // len(labels), seed=0)]
    base = load(model_folder(MODELS[NEWSGROUPS], CACHE), bits, objective := objective_of(NEWSGROUPS, max_length, labels))
    return _task(base, "bert", objective, (train, test), [row["label"] for row in train])


def _e2e(max_length: int, bits: Bits) -> Task:
    """SmolLM2, the development split of E2E for training, and 200 evenly spaced sentences of its test split."""
    train, test = rows_of(E2E)
    test = test[:: len(test) // _TEST_SENTENCES][:_TEST_SENTENCES]
    base = load(model_folder(MODELS[E2E], CACHE), bits, objective := objective_of(E2E, max_length, ()))
    return _task(base, "llama", objective, (train, test), [restaurant(row["mr"]) for row in train])


_LOADERS: Final[dict[str, Callable[[int, Bits], Task]]] = {NEWSGROUPS: _newsgroups, E2E: _e2e}


def _task(base: Base, architecture: str, objective: Objective, rows: tuple[list[Row], list[Row]], classes: list[str]) -> Task:
    train, test = (tuple(encode(part, objective, base.tokenizer)) for part in rows)
    return Task(base, objective, target_weights(base.model, architecture, ()), train, test, tuple(classes))


def _e2e_rows(name: str) -> list[Row]:
    file = Path(os.environ.get("E2E_DATA", "")) / name
    if not file.is_file():
        raise SystemExit(
            f"{file} does not exist: set E2E_DATA to the folder of devset.csv and testset_w_refs.csv, see examples/data-to-text"
        )
    return e2e_rows(file)


def partition(task: Task, problem: Problem, sites: int) -> Partition:
    """The rows of each site: shares of each class drawn from a Dirichlet distribution, seeded by the problem."""
    numbers = {name: f"{number:04d}" for number, name in enumerate(sorted(set(task.classes)))}
    classes = [numbers[name] for name in task.classes]
    alpha = problem.dirichlet_alpha or _EVEN
    shares = dirichlet_shares(classes, [1.0] * sites, alpha=alpha, seed=problem.seed)
    random = np.random.default_rng(problem.seed)
    slow = frozenset(int(number) for number in random.permutation(len(numbers))[:SLOW_CLASSES])
    if problem.slow_sites_own_classes:
        shares |= _shares_of_slow_sites(slow, sites, alpha, random)
    parts = [_held_out(rows, random) for rows in split_rows(classes, shares, seed=problem.seed)]
    return Partition(tuple(rows for rows, _ in parts), tuple(validation for _, validation in parts), slow)


def _held_out(rows: Sequence[int], random: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A site's rows for training and for validation."""
    count = min(VALIDATION, len(rows) // 5)
    chosen = {int(row) for row in random.choice(rows, count, replace=False)}
    return tuple(row for row in rows if row not in chosen), tuple(sorted(chosen))


def _shares_of_slow_sites(classes: frozenset[int], sites: int, alpha: float, random: np.random.Generator) -> Shares:
    """Shares of these classes over the slowest sites only."""
    none = np.zeros(sites - _SLOW_SITES)
    return {f"{c:04d}": np.concatenate([none, random.dirichlet([alpha * sites / _SLOW_SITES] * _SLOW_SITES)]) for c in sorted(classes)}
