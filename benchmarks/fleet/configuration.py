"""What a run of the benchmark is made of. Every field is part of the run's key: a changed configuration is another run."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from fedpipe_trainer.contract import Bits

NEWSGROUPS, E2E = "20 Newsgroups", "E2E"
_FOLDER: Final = Path(__file__).parent
PROFILES: Final = {
    (NEWSGROUPS, 16): _FOLDER / "profile.json",
    (NEWSGROUPS, 32): _FOLDER / "profile-32.json",
    (E2E, 16): _FOLDER / "profile-e2e.json",
}
"""By data and bits of the base: the measured profile of a site of the fastest tier."""
VERSION: Final = 2
"""To be raised when the aggregation or a constant of the fleet changes what a run does or how long it takes."""
PLANNER: Final = 4
"""To be raised when the planner changes what the runs do that leave something to it."""
_BITS: Final[Bits] = 16
"""Of the base, but in an ablation."""


@dataclass(frozen=True)
class Problem:
    """What is learnt, and how the training data are split among the sites."""

    seed: int = 0
    dirichlet_alpha: float | None = 0.5
    """Concentration of each class's shares over the sites; None: the same distribution at every site."""
    slow_sites_own_classes: bool = False
    """Whether the sites of the slowest tier alone hold `SLOW_CLASSES` of the classes, or the tiers are independent of the classes."""
    data: str = NEWSGROUPS
    """What is learnt, and with which model: see `task`."""
    max_length: int = 48
    batch_size: int = 16
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Given:
    """What a rule gives a site to do in every round."""

    steps: int = 8
    """Optimiser steps in a round. 0: the site takes no part."""
    rank: int = 8
    depth: int | None = None
    """The number of top layers with adapters. None: all."""
    cached: bool = False
    """Whether it caches the activations below them."""


@dataclass(frozen=True)
class Planned:
    """What a run leaves to the operator's planner."""

    mode: str = "Auto"
    depth: str = "Auto"
    importance: str = "Gradient"
    """One of the operator's methods, or `Random` or `Inverse`: the sites' scores in another order, for the ablation."""
    max_rank: int = 32
    cache: bool = False
    """Whether the sites have a cache."""
    batch_sizes: tuple[int, ...] = (2, 4, 8, 16)
    """Those of the spec, the largest being the problem's; with that one only, no site takes a smaller one."""
    bits: Bits = _BITS
    """Of the base, at every site: one whose memory cannot carry it has no plan and takes no part."""


@dataclass(frozen=True)
class Server:
    """How the server aggregates."""

    method: str = "Exact"
    """One of the operator's methods, or a rival's rule that this benchmark implements (see `server`)."""
    normalization: str = "EffectiveSteps"
    max_rank: int = 32
    frozen_residual: bool = True
    """Whether a site keeps the components beyond its rank active, or starts from a truncated adapter."""


@dataclass(frozen=True)
class Run:
    """One federated run on a virtual clock."""

    problem: Problem
    slowdowns: tuple[float, ...]
    """By site: how many times slower, and with how much less memory and bandwidth, it works than the fastest tier."""
    work: Planned | tuple[Given, ...] = Planned()
    """Planned by the operator's planner in every round, or given by site."""
    server: Server = Server()
    rounds: int = 14
    """`rounds.count` of the spec, which the planner sees; the run ends by its time."""
    seconds: float = 240.0
    """The run ends with the last round that ends by then, in virtual seconds."""
    evaluate_every: int = 1
    """Rounds between two evaluations on the test documents."""
    schedule: str = "Constant"
    """`training.learningRateSchedule` of the product, over `seconds`."""
    starts: int = 1
    """Of a site in a round: one that evaluates the global adapter and trains, or two, one for each. A start loads the base, takes a first
    step and receives the global adapter."""


@dataclass(frozen=True)
class Study:
    """One centralised run: all data at one place, one optimiser throughout, evaluated after these numbers of steps."""

    problem: Problem
    evaluate_at: tuple[int, ...]
    rank: int = 8
    depth: int | None = None
    test_documents: int = 1000
    schedule: str = "Constant"
    """How the learning rate falls over the steps, as in a run."""


def bits_of(configuration: Run | Study) -> Bits:
    """The bits of the base that it trains on."""
    return configuration.work.bits if isinstance(configuration, Run) and isinstance(configuration.work, Planned) else _BITS


def key_of(configuration: Run | Study) -> str:
    """The name under which its result is stored. A run's clock depends on the measured profile too."""
    profile = PROFILES[configuration.problem.data, bits_of(configuration)]
    clock = [hashlib.sha256(profile.read_bytes()).hexdigest(), VERSION] if isinstance(configuration, Run) else []
    planner = [PLANNER] if isinstance(configuration, Run) and isinstance(configuration.work, Planned) else []
    fields = asdict(configuration)
    # These came later, and the keys of older runs stay.
    if fields.get("schedule") == "Constant":
        del fields["schedule"]
    if fields["problem"]["data"] == NEWSGROUPS:
        del fields["problem"]["data"]
    if fields.get("starts") == 1:
        del fields["starts"]
    if planner and bits_of(configuration) == _BITS:
        del fields["work"]["bits"]
    text = json.dumps([type(configuration).__name__, fields, *clock, *planner], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
