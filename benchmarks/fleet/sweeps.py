"""The sweeps: which runs each of the benchmark's tables is made of. The names of runs are `setting, rule, seed N`."""

from typing import Final

from configuration import Problem, Run, Server, Site, Study

SLOWDOWNS: Final = (1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0)
"""Eight sites in four tiers."""
RANKS: Final = (16, 16, 8, 8, 4, 4, 2, 2)
"""The rank that each of them can carry, for the methods that let ranks differ."""
WEAKEST: Final = (min(RANKS),) * len(RANKS)
_SETTINGS: Final = {"independent": False, "correlated": True}
_ROUND, _EQUAL_STEPS = 32.0, 8
"""Seconds of a round whose steps go by speed; steps of every site in a round with equal ones."""
_SECONDS: Final = 448.0


def equal_steps(steps: int, ranks: tuple[int, ...]) -> tuple[Site, ...]:
    """The same number of steps at every site."""
    return tuple(Site(slowdown=slowdown, steps=steps, rank=rank) for slowdown, rank in zip(SLOWDOWNS, ranks, strict=True))


def steps_by_speed(seconds: float, ranks: tuple[int, ...]) -> tuple[Site, ...]:
    """As many steps as each site takes in a round of this length."""
    return tuple(Site(slowdown=slowdown, steps=int(seconds / slowdown), rank=rank) for slowdown, rank in zip(SLOWDOWNS, ranks, strict=True))


def only(sites: tuple[Site, ...], chosen: range) -> tuple[Site, ...]:
    """The others take no steps."""
    return tuple(site if index in chosen else Site(site.slowdown, steps=0) for index, site in enumerate(sites))


def main(seeds: range = range(3)) -> dict[str, Run | Study]:
    """The main table: Dirichlet 0.5, tiers independent of the classes and correlated with them, three seeds."""
    runs: dict[str, Run | Study] = {}
    for seed in seeds:
        runs[f"centralised, seed {seed}"] = centralised(Problem(seed=seed))
        for setting, owned in _SETTINGS.items():
            problem = Problem(seed=seed, slow_sites_own_classes=owned)
            for rule, (sites, server) in RULES.items():
                runs[f"{setting}, {rule}, seed {seed}"] = Run(problem, sites, server, _SECONDS)
    return runs


def centralised(problem: Problem) -> Study:
    """The ceiling: all data at one place."""
    return Study(problem, tuple(range(50, 1001, 50)), rank=max(RANKS))


def others() -> dict[str, Run | Study]:
    """The other rivals, one seed."""
    runs: dict[str, Run | Study] = {"centralised, seed 0": centralised(Problem())}
    speed = steps_by_speed(_ROUND, RANKS)
    for setting, owned in _SETTINGS.items():
        problem = Problem(slow_sites_own_classes=owned)
        rules = {"fastest tier only": (only(speed, range(2)), Server())}
        rules |= {f"site {index} alone": (only(speed, range(index, index + 1)), Server()) for index in range(len(SLOWDOWNS))}
        rules |= {"LEGEND-like depth": (_depth_by_tier(), Server())}
        for rule, (sites, server) in rules.items():
            runs[f"{setting}, {rule}, seed 0"] = Run(problem, sites, server, _SECONDS)
    return runs


def ablations() -> dict[str, Run | Study]:
    """Ours with one thing changed at a time, one seed."""
    runs: dict[str, Run | Study] = {"centralised, seed 0": centralised(Problem())}
    speed = steps_by_speed(_ROUND, RANKS)
    rules = {
        "ours": (speed, Server()),
        "weights by data": (speed, Server(normalization="None")),
        "weights by samples trained": (speed, Server(normalization="TrainedSamples")),
        "steps^0.5": (speed, Server(normalization="steps^0.5")),
        "steps^0.75": (speed, Server(normalization="steps^0.75")),
        "equal steps": (equal_steps(_EQUAL_STEPS, RANKS), Server()),
        "equal ranks": (steps_by_speed(_ROUND, WEAKEST), Server()),
        "no frozen residual": (speed, Server(method="FlexLoRA", frozen_residual=False)),
        "inexact average": (speed, Server(method="ZeroPad")),
        "global rank 16": (speed, Server(max_rank=16)),
    }
    for setting, owned in _SETTINGS.items():
        problem = Problem(slow_sites_own_classes=owned)
        runs |= {f"{setting}, {rule}, seed 0": Run(problem, sites, server, _SECONDS) for rule, (sites, server) in rules.items()}
    return runs


def normalization(seconds: float = 192.0) -> dict[str, Run | Study]:
    """A short comparison of the normalizations: 32 tokens, rounds of 16 seconds."""
    runs: dict[str, Run | Study] = {}
    ranks = (8,) * len(SLOWDOWNS)
    for setting, owned in reversed(_SETTINGS.items()):
        problem = Problem(slow_sites_own_classes=owned, max_length=32)
        for rule in ("EffectiveSteps", "None", "steps^0.75", "TrainedSamples"):
            server = Server(normalization=rule)
            runs[f"{setting}, by speed, {rule}, seed 0"] = Run(problem, steps_by_speed(16, ranks), server, seconds, evaluate_every=2)
        runs[f"{setting}, equal, seed 0"] = Run(problem, equal_steps(4, ranks), Server(), seconds)
    return runs


def depth_and_rank() -> dict[str, Run | Study]:
    """Centralised progress by steps, depth and rank: what the planner's value of a step is fitted to."""
    problem, at = Problem(), (10, 20, 40, 80)
    runs: dict[str, Run | Study] = {f"depth {k}": Study(problem, at, depth=k, test_documents=333) for k in (6, 2, 4, 1, 3)}
    return runs | {f"rank {rank}": Study(problem, at, rank=rank, test_documents=333) for rank in (2, 32, 4, 16)}


def _depth_by_tier() -> tuple[Site, ...]:
    """Slower tiers train fewer layers, so that all take equal steps in less time (LEGEND, arXiv 2412.20004)."""
    depths = (6, 6, 4, 4, 2, 2, 1, 1)
    return tuple(Site(slowdown, _EQUAL_STEPS, rank, depth) for slowdown, rank, depth in zip(SLOWDOWNS, RANKS, depths, strict=True))


RULES: Final = {
    "ours": (steps_by_speed(_ROUND, RANKS), Server()),
    "FedIT": (equal_steps(_EQUAL_STEPS, WEAKEST), Server(method="FedIT", normalization="None")),
    "FedIT by speed": (steps_by_speed(_ROUND, WEAKEST), Server(method="FedIT", normalization="None")),
    "FedIT by speed, FedNova": (steps_by_speed(_ROUND, WEAKEST), Server(method="FedIT")),
    "HetLoRA": (equal_steps(_EQUAL_STEPS, RANKS), Server(method="HetLoRA", normalization="None", frozen_residual=False)),
    "FLoRA": (
        equal_steps(_EQUAL_STEPS, RANKS),
        Server(method="FLoRA", normalization="None", frozen_residual=False, max_rank=sum(RANKS)),
    ),
    "FlexLoRA": (equal_steps(_EQUAL_STEPS, RANKS), Server(method="FlexLoRA", normalization="None", frozen_residual=False)),
}
"""The rules of the main table: what each site does, and how the server aggregates."""
SWEEPS: Final = {
    "main": main,
    "others": others,
    "ablations": ablations,
    "normalization": normalization,
    "depth-and-rank": depth_and_rank,
}
