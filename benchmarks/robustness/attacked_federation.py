"""Ten sites that train the stand-in, some of them malicious."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from aggregators import OURS, Ours, Tensors, flower, keys_of
from attacks import ATTACKS, CLASSES, Attack, Known
from configuration import Problem
from normalization import LAYERS, RANK, SCALE, WIDTH, Documents, StandIn, Trained
from scipy.linalg import svd  # type: ignore[import-untyped]
from task import load_task, partition
from torch.nn import functional

from fedpipe_trainer.contract import Plan, Scaling
from fedpipe_trainer.contract.plan import scale_of

SITES: Final = tuple(f"site-{index}" for index in range(10))
STEPS: Final = (40, 40, 30, 20, 20, 20, 10, 10, 5, 5)
UNEQUAL: Final = (8, 8, 8, 4, 8, 4, 4, 2, 2, 2)
"""Ranks of the sites where they differ: the fewer steps, the lower."""
BAD: Final = (3, 6, 0, 8)
"""Which sites are malicious, in this order: of middling, few and many steps."""
MOST: Final = 3
"""The f of the rules that need one is that of the attack, and at most this: ten sites are 2f + 3 or more."""
WEIGHTS: Final[Mapping[str, tuple[int, int]]] = {f"layer.{index}.dense": (WIDTH, WIDTH) for index in range(LAYERS)}
Arrays = list[np.ndarray]


class State(NamedTuple):
    """The global adapter as a site gets it."""

    start: Arrays
    """What it trains: A and B of rank 8 of each layer, and the head."""
    frozen: list[torch.Tensor]
    """What it keeps frozen beside them in each layer, scale included: the global components beyond rank 8. Flower has none."""

    def of_rank(self, rank: int) -> "State":
        """As a site of this rank gets it."""
        pairs = [(self.start[2 * layer], self.start[2 * layer + 1]) for layer in range(LAYERS)]
        factors = [array for a, b in pairs for array in (a[:rank], b[:, :rank])]
        beyond = [torch.tensor(SCALE * b[:, rank:] @ a[rank:]) for a, b in pairs]
        return State(factors + self.start[2 * LAYERS :], [one + more for one, more in zip(self.frozen, beyond, strict=True)])


Combine = Callable[[State, Mapping[str, Arrays], Sequence[str]], State]


@dataclass(frozen=True)
class Case:
    """One run."""

    rule: str
    attack: str
    malicious: int
    rounds: int
    seed: int
    is_unequal: bool = False
    """Whether the sites' ranks differ."""

    @property
    def key(self) -> str:
        """What it is stored under."""
        words = (self.rule, self.attack, self.malicious, self.rounds, self.seed, *(["unequal"] if self.is_unequal else []))
        return "|".join(map(str, words))

    @property
    def ranks(self) -> dict[str, int]:
        """By site."""
        return dict(zip(SITES, UNEQUAL if self.is_unequal else [RANK] * len(SITES), strict=True))


class Federation:
    """The data of the sites, split once for all runs of a seed."""

    def __init__(self, seed: int, train: Documents, test: Documents) -> None:
        problem = Problem(seed)
        self.seed, self.train, self.test, self.model = seed, train, test, StandIn()
        self.rows = [torch.tensor(rows) for rows in partition(load_task(problem), problem, len(SITES)).rows]
        self.learning_rate = problem.learning_rate
        self.samples = dict(zip(SITES, map(len, self.rows), strict=True))

    def run(self, case: Case) -> dict[str, Any]:
        """The mean accuracy and loss of the last two rounds, and the harm to honest sites."""
        bad = {SITES[index] for index in BAD[: case.malicious]}
        state, (combine, harm) = State(self._start(), [torch.zeros(1)] * LAYERS), self._rule(case)
        points = []
        for round_ in range(case.rounds):
            sent = self._updates(state, bad, case, round_)
            state = combine(state, sent, [site for site in SITES if site not in bad])
            points.append(self._quality(state))
        accuracy, loss = np.mean(points[-2:], axis=0)
        return {"accuracy": round(float(accuracy), 4), "loss": round(min(float(loss), 1e6), 4), "harm": harm() if harm else None}

    def _rule(self, case: Case) -> tuple[Combine, Callable[[], dict[str, int]] | None]:
        malicious = min(MOST, max(1, case.malicious))
        if case.rule.startswith("Flower "):
            rule, samples = case.rule.removeprefix("Flower "), list(self.samples.values())
            return lambda state, sent, _: State(flower(rule, list(sent.values()), samples, malicious), state.frozen), None
        steps = dict(zip(SITES, STEPS, strict=True))
        ours = Ours(replace(OURS[case.rule], malicious_sites=malicious), WEIGHTS, self.samples, steps, case.ranks)
        keys = keys_of(list(WEIGHTS))

        def combine(_: State, sent: Mapping[str, Arrays], honest: Sequence[str]) -> State:
            updates = {site: dict(zip(keys, _in_own_scale(arrays, case.ranks[site]), strict=True)) for site, arrays in sent.items()}
            return _state(ours(updates, honest), keys, self._start())

        return combine, ours.harm.as_dict

    def _start(self) -> Arrays:
        random = np.random.default_rng(self.seed)
        factors = [array for _ in range(LAYERS) for array in (random.uniform(-1, 1, (RANK, WIDTH)) / WIDTH**0.5, np.zeros((WIDTH, RANK)))]
        return [array.astype(np.float32) for array in (*factors, random.standard_normal((CLASSES, WIDTH)) * 0.02, np.zeros(CLASSES))]

    def _updates(self, state: State, bad: set[str], case: Case, round_: int) -> dict[str, Arrays]:
        attack = ATTACKS.get(case.attack, Attack())
        given = {site: state.of_rank(rank) for site, rank in case.ranks.items()}
        trained = {
            site: self._train(index, given[site], flips=site in bad and attack.flips_labels, seed=1000 * case.seed + 10 * round_ + index)
            for index, site in enumerate(SITES)
        }
        if attack.change is None:
            return trained
        moved = {site: _increments(arrays, given[site].start) for site, arrays in trained.items()}
        honest, random = [one for site, one in moved.items() if site not in bad], np.random.default_rng([case.seed, round_])
        return trained | {site: _sent(attack.change(Known(moved[site], honest, random)), given[site].start) for site in sorted(bad)}

    def _train(self, index: int, state: State, *, flips: bool, seed: int) -> Arrays:
        mine, rows, generator = _as_trained(state.start).copy(), self.rows[index], torch.Generator().manual_seed(seed)
        classes = CLASSES - 1 - self.train.classes if flips else self.train.classes
        optimizer = torch.optim.AdamW(mine.tensors, lr=self.learning_rate, weight_decay=0.0)
        for _ in range(STEPS[index]):
            batch = rows[torch.randint(len(rows), (16,), generator=generator)]
            optimizer.zero_grad()
            functional.cross_entropy(self.model.logits(self.train.features[batch], state.frozen, mine), classes[batch]).backward()
            torch.nn.utils.clip_grad_norm_(mine.tensors, 1.0)
            optimizer.step()
        return [tensor.detach().numpy() for tensor in mine.tensors]

    @torch.no_grad()
    def _quality(self, state: State) -> tuple[float, float]:
        logits = self.model.logits(self.test.features, state.frozen, _as_trained(state.start)).nan_to_num(0.0, 1e6, -1e6)
        hits = (logits.argmax(1) == self.test.classes).float().mean()
        return float(hits), float(functional.cross_entropy(logits, self.test.classes))


def _state(adapter: Tensors, keys: Sequence[str], fresh: Arrays) -> State:
    """The global factors have scale 1; a site's are multiplied by its own. Components that are missing up to rank 8 begin as in round 1."""
    start, frozen = [], []
    for layer, (a_key, b_key) in enumerate(zip(keys[: 2 * LAYERS : 2], keys[1 : 2 * LAYERS : 2], strict=True)):
        a, b = adapter[a_key], adapter[b_key]
        missing = max(0, RANK - len(a))
        start += [np.concatenate([a[:RANK], fresh[2 * layer][:missing]]), np.pad(b[:, :RANK] / SCALE, ((0, 0), (0, missing)))]
        frozen.append(torch.tensor(b[:, RANK:] @ a[RANK:]))
    return State(start + [adapter[key] for key in keys[2 * LAYERS :]], frozen)


def _as_trained(arrays: Arrays) -> Trained:
    tensors = [torch.tensor(array, dtype=torch.float32) for array in arrays]
    return Trained([(tensors[2 * layer], tensors[2 * layer + 1]) for layer in range(LAYERS)], tensors[2 * LAYERS :])


def _increments(arrays: Arrays, start: Arrays) -> Arrays:
    """Of the products and of the head's tensors: what attacks change, so that they are the same for rules on products and on factors."""
    products = [_product(arrays, layer) - _product(start, layer) for layer in range(LAYERS)]
    return products + [one - before for one, before in zip(arrays[2 * LAYERS :], start[2 * LAYERS :], strict=True)]


def _sent(increments: Arrays, start: Arrays) -> Arrays:
    """The factors of the site's rank that come closest to these increments, and the head."""
    factors = [array for layer in range(LAYERS) for array in _factorised(_product(start, layer) + increments[layer], len(start[0]))]
    head = [before + one for one, before in zip(increments[LAYERS:], start[2 * LAYERS :], strict=True)]
    return [array.astype(np.float32) for array in (*factors, *head)]


def _in_own_scale(arrays: Arrays, rank: int) -> Arrays:
    """What a site sends: it was trained at the scale of rank 8, and is multiplied by that of its own rank."""
    factor = np.float32(SCALE / scale_of(Scaling.RSLORA, Plan.model_fields["alpha"].default, rank))
    return [factor * one if index % 2 and index < 2 * LAYERS else one for index, one in enumerate(arrays)]


def _product(arrays: Arrays, layer: int) -> np.ndarray:
    return arrays[2 * layer + 1].astype(np.float64) @ arrays[2 * layer]


def _factorised(dense: np.ndarray, rank: int) -> Arrays:
    try:
        u, s, v = np.linalg.svd(dense)
    except np.linalg.LinAlgError:  # LAPACK's faster algorithm did not converge: twice in 627 runs
        u, s, v = svd(dense, lapack_driver="gesvd")
    norm = 3**-0.5
    return [v[:rank] * norm, u[:, :rank] * s[:rank] / norm]
