"""The model and the data, loaded and tokenised once for all runs of a process."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from configuration import Problem
from ingredients.newsgroups import newsgroups
from ingredients.splitting import Shares, balanced_sample, dirichlet_shares, split_rows

from fedpipe_trainer.contract import Objective, SequenceClassification, WeightShape
from fedpipe_trainer.data import Example, encode
from fedpipe_trainer.model import Base
from fedpipe_trainer.model.architecture import target_weights
from fedpipe_trainer.model.base import load

CACHE: Final = Path.home() / ".cache" / "fedpipe"
SLOW_CLASSES: Final = 6
_SLOW_SITES: Final = 2
"""Sites of the slowest tier: the last ones."""
TEST_DOCUMENTS: Final = 1000
_VALIDATION: Final = 40
"""Rows that a site holds out, at most a fifth of its rows."""
_EVEN: Final = 1e6
"""A Dirichlet concentration at which all sites have the same distribution."""


@dataclass(frozen=True)
class Task:
    """A base model with the tokenised data of 20 Newsgroups."""

    base: Base
    objective: Objective
    weights: tuple[WeightShape, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]

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


@lru_cache(maxsize=1)
def load_task(max_length: int) -> Task:
    """MiniLM at 16 bits, 20 Newsgroups cut at this length, a fixed test subset of 1,000 documents."""
    train, test = newsgroups(CACHE)
    objective = SequenceClassification(
        text="text", label="label", labels=tuple(sorted({row["label"] for row in train})), max_length=max_length
    )
    base = load(CACHE / "models" / "minilm", 16, objective)
    test = [test[i] for i in balanced_sample([row["label"] for row in test], TEST_DOCUMENTS // len(objective.labels), seed=0)]
    return Task(
        base=base,
        objective=objective,
        weights=target_weights(base.model, "bert", ()),
        train=tuple(encode(train, objective, base.tokenizer)),
        test=tuple(encode(test, objective, base.tokenizer)),
    )


def partition(examples: tuple[Example, ...], problem: Problem, sites: int) -> Partition:
    """The rows of each site: shares of each class drawn from a Dirichlet distribution, seeded by the problem."""
    classes = [f"{example.labels[0]:04d}" for example in examples]
    alpha = problem.dirichlet_alpha or _EVEN
    shares = dirichlet_shares(classes, [1.0] * sites, alpha=alpha, seed=problem.seed)
    random = np.random.default_rng(problem.seed)
    slow = frozenset(int(c) for c in random.permutation(sorted({int(c) for c in classes}))[:SLOW_CLASSES])
    if problem.slow_sites_own_classes:
        shares |= _shares_of_slow_sites(slow, sites, alpha, random)
    parts = [_held_out(rows, random) for rows in split_rows(classes, shares, seed=problem.seed)]
    return Partition(tuple(rows for rows, _ in parts), tuple(validation for _, validation in parts), slow)


def _held_out(rows: Sequence[int], random: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A site's rows for training and for validation."""
    count = min(_VALIDATION, len(rows) // 5)
    chosen = {int(row) for row in random.choice(rows, count, replace=False)}
    return tuple(row for row in rows if row not in chosen), tuple(sorted(chosen))


def _shares_of_slow_sites(classes: frozenset[int], sites: int, alpha: float, random: np.random.Generator) -> Shares:
    """Shares of these classes over the slowest sites only."""
    none = np.zeros(sites - _SLOW_SITES)
    return {f"{c:04d}": np.concatenate([none, random.dirichlet([alpha * sites / _SLOW_SITES] * _SLOW_SITES)]) for c in sorted(classes)}
