"""The sweeps: which runs each of the benchmark's tables is made of. The names of runs are `setting, rule, seed N`."""

from dataclasses import replace
from typing import Final, NamedTuple

from configuration import E2E, Given, Planned, Problem, Run, Server, Study

SLOWDOWNS: Final = (1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0, 8.0)
"""Eight sites in four tiers."""
RANKS: Final = (32, 32, 16, 16, 8, 8, 4, 4)
"""By site, for the methods that let ranks differ."""
COMMON: Final = (max(RANKS),) * len(RANKS)
"""The rank of the methods that need equal ones. Every site here can carry it: the adapters of so small a model are smaller still."""
_SETTINGS: Final = {"independent": False, "correlated": True}
_SECONDS: Final = 240.0
_ROUNDS: Final = 24
"""Of a planned run."""
_ROUND, _EQUAL_STEPS = 32, 8
"""Steps of the fastest tier in a round of steps by speed; steps of every site in a round with equal ones."""
_EQUAL_RATE: Final = 4e-3
"""The best of the sweep `rates` for rules with equal steps: their rounds are short, and every round has a new AdamW."""


class Rule(NamedTuple):
    """What each site does, how the server aggregates, and how the learning rate changes from round to round."""

    work: Planned | tuple[Given, ...]
    server: Server
    schedule: str = "Constant"
    rate: float = 2e-3
    """The best of the sweep `rates` for its family: of ours, and of rules with the steps of `_ROUND`."""


def equal_steps(steps: int, ranks: tuple[int, ...]) -> tuple[Given, ...]:
    """The same number of steps at every site."""
    return tuple(Given(steps, rank) for rank in ranks)


def steps_by_speed(fastest: int, ranks: tuple[int, ...]) -> tuple[Given, ...]:
    """As many steps as each site takes while the fastest takes this number."""
    return tuple(Given(int(fastest / slowdown), rank) for slowdown, rank in zip(SLOWDOWNS, ranks, strict=True))


def only(sites: tuple[Given, ...], chosen: range) -> tuple[Given, ...]:
    """The others take no steps."""
    return tuple(site if index in chosen else Given(steps=0) for index, site in enumerate(sites))


def main(seeds: range = range(3)) -> dict[str, Run | Study]:
    """The main table: Dirichlet 0.5, tiers independent of the classes and correlated with them, three seeds."""
    runs: dict[str, Run | Study] = {}
    for seed in seeds:
        runs[f"centralised, seed {seed}"] = centralised(Problem(seed=seed))
        for setting, owned in _SETTINGS.items():
            problem = Problem(seed=seed, slow_sites_own_classes=owned)
            for name, rule in RULES.items():
                runs[f"{setting}, {name}, seed {seed}"] = _run(problem, rule)
    return runs


def _run(problem: Problem, rule: Rule, seconds: float = _SECONDS) -> Run:
    """Equal steps are given twice the time: they need it, and cost less to compute."""
    work, server, schedule, rate = rule
    is_equal = len({one.steps for one in work}) == 1 if isinstance(work, tuple) else work.mode == "UniformWeakest"
    rounds = _ROUNDS if isinstance(work, Planned) and work.mode == "Auto" else Run.rounds
    problem = replace(problem, learning_rate=rate)
    return Run(problem, SLOWDOWNS, work, server, rounds=rounds, seconds=2 * seconds if is_equal else seconds, schedule=schedule)


def centralised(problem: Problem, rate: float = 1e-3) -> Study:
    """The ceiling: all data at one place, one optimiser, as many samples as the planned runs take, the rate falling to a tenth."""
    steps = tuple(range(200, 3601, 200))
    return Study(replace(problem, learning_rate=rate), steps, rank=max(RANKS), schedule="Cosine")


def longer() -> dict[str, Run | Study]:
    """Three times as long, and equal steps nine times, one seed: when each reaches 95 % of the ceiling."""
    problem = Problem()
    runs = {
        "ours": replace(_run(problem, RULES["ours"]), seconds=3 * _SECONDS, rounds=3 * _ROUNDS),
        "FedIT by speed": replace(_run(problem, RULES["FedIT by speed"]), seconds=3 * _SECONDS),
        "FedIT": replace(_run(problem, RULES["FedIT"]), seconds=9 * _SECONDS, evaluate_every=2),
    }
    return {"centralised, seed 0": centralised(problem)} | {f"independent, {name}, seed 0": run for name, run in runs.items()}


def others() -> dict[str, Run | Study]:
    """The other rivals, one seed; a site alone in one setting, as it does not know of the others."""
    rules: dict[str, Rule] = {
        "FedIT by speed, FedNova, falling rate": RULES["FedIT by speed, FedNova"]._replace(schedule="Cosine"),
        "FedIT, falling rate": RULES["FedIT"]._replace(schedule="Cosine"),
        "LEGEND-like depth": Rule(_depth_by_tier(), Server(), rate=_EQUAL_RATE),
        "FedAdapter-like depth": Rule(_depth_of_all(), Server(), rate=_EQUAL_RATE),
        "fastest tier only": Rule(only(steps_by_speed(_ROUND, RANKS), range(2)), Server()),
    }
    alone = {
        f"site {index} alone": Rule(only(steps_by_speed(_ROUND, RANKS), range(index, index + 1)), Server())
        for index in range(len(SLOWDOWNS))
    }
    runs: dict[str, Run | Study] = {"centralised, seed 0": centralised(Problem())}
    for setting, owned in _SETTINGS.items():
        runs |= {f"{setting}, {name}, seed 0": _run(Problem(slow_sites_own_classes=owned), rule) for name, rule in rules.items()}
    return runs | {f"independent, {name}, seed 0": _run(Problem(), rule) for name, rule in alone.items()}


def rivals() -> dict[str, Run | Study]:
    """The rivals whose plans are given, in one setting: `held.memory_table` needs no more."""
    runs = {name: run for name, run in (main(range(1)) | others()).items() if name.startswith("independent, ")}
    return {name.removeprefix("independent, ").removesuffix(", seed 0"): run for name, run in runs.items()}


def ablations() -> dict[str, Run | Study]:
    """Ours at a constant learning rate, and with one thing changed at a time: one seed, half the time, in the setting that shows it."""
    ours = Planned()
    of_plans = {
        "with caches": Planned(cache=True),
        "one batch": Planned(batch_sizes=(16,)),
        "equal steps": Planned(mode="UniformWeakest"),
        "one rank and depth": Planned(mode="Proportional"),
        "all layers": Planned(depth="Full"),
        "importance none": Planned(importance="None"),
        "importance random": Planned(importance="Random"),
        "importance inverse": Planned(importance="Inverse"),
    }
    of_servers = {
        "weights by data": (ours, Server(normalization="None")),
        "weights by samples trained": (ours, Server(normalization="TrainedSamples")),
        "FedNova as published": (ours, Server(normalization="FedNova")),
        "steps^0.5": (ours, Server(normalization="steps^0.5")),
        "no frozen residual": (ours, Server(method="FlexLoRA", normalization="shares of EffectiveSteps", frozen_residual=False)),
        "inexact average": (ours, Server(method="ZeroPad")),
        "global rank 8": (Planned(max_rank=8), Server(max_rank=8)),
    }
    rules = {"independent": {name: Rule(work, Server()) for name, work in ({"ours": ours} | of_plans).items()}}
    rules["correlated"] = {name: Rule(work, server) for name, (work, server) in ({"ours": (ours, Server())} | of_servers).items()}
    runs: dict[str, Run | Study] = {"centralised, seed 0": centralised(Problem())}
    runs |= {
        f"{setting}, {name}, seed 0": _run(Problem(slow_sites_own_classes=_SETTINGS[setting]), rule, _SECONDS / 2)
        for setting, changed in rules.items()
        for name, rule in changed.items()
    }
    wide = Rule(Planned(bits=32), Server())  # its profile and its rounds take twice as long
    return runs | {
        "independent, two starts a round, seed 0": replace(_run(Problem(), Rule(ours, Server()), _SECONDS / 2), starts=2),
        "independent, 32 bits at every site, seed 0": _run(Problem(), wide),
    }


def settings() -> dict[str, Run | Study]:
    """Other fleets, one seed: twice the sites, the same data everywhere, and more uneven data."""
    fleets = {"IID": Problem(dirichlet_alpha=None), "Dirichlet 0.1": Problem(dirichlet_alpha=0.1)}
    rules = {name: RULES[name] for name in ("ours", "FedIT by speed", "FedIT")}
    runs: dict[str, Run | Study] = {"centralised, seed 0": centralised(Problem())}
    runs |= {f"{fleet}, {name}, seed 0": _run(problem, rule) for fleet, problem in fleets.items() for name, rule in rules.items()}
    return runs | {f"16 sites, {name}, seed 0": _doubled(_run(Problem(), rule)) for name, rule in rules.items()}


def e2e() -> dict[str, Run | Study]:
    """A language model that learns to write sentences: SmolLM2 on E2E, one seed, tiers independent of the restaurants."""
    problem = Problem(data=E2E, max_length=96, batch_size=8, learning_rate=1e-3)
    by_speed, equal = steps_by_speed(16, COMMON), equal_steps(4, COMMON)
    works: dict[str, tuple[Planned | tuple[Given, ...], Server, str]] = {
        "ours": (Planned(batch_sizes=(2, 4, 8)), Server(), "Cosine"),
        "FedIT by speed": (by_speed, Server(method="FedIT", normalization="None"), "Constant"),
        "FedIT by speed, falling rate": (by_speed, Server(method="FedIT", normalization="None"), "Cosine"),
        "FedIT": (equal, Server(method="FedIT", normalization="None"), "Constant"),
    }
    runs: dict[str, Run | Study] = {"centralised, seed 0": Study(problem, tuple(range(50, 801, 50)), rank=max(RANKS), schedule="Cosine")}
    return runs | {
        f"E2E, {name}, seed 0": Run(problem, SLOWDOWNS, work, server, rounds=12, seconds=600.0, schedule=schedule)
        for name, (work, server, schedule) in works.items()
    }


def _doubled(run: Run) -> Run:
    """The same with two sites for each, and half the data for each of them."""
    work = run.work if isinstance(run.work, Planned) else tuple(one for one in run.work for _ in range(2))
    return replace(run, slowdowns=tuple(one for one in run.slowdowns for _ in range(2)), work=work)


def rates() -> dict[str, Run | Study]:
    """The learning rates of one grid for each family of rules and for the ceiling, one seed, half the time."""
    families = ("ours", "FedIT", "FedIT by speed", "FLoRA")
    grid = (2e-3, 4e-3, 1e-3, 8e-3)
    runs: dict[str, Run | Study] = {
        f"{rule}, {rate:g}, seed 0": _run(Problem(), RULES[rule]._replace(rate=rate), _SECONDS / 2) for rate in grid for rule in families
    }
    return runs | {f"centralised, {rate:g}, seed 0": centralised(Problem(), rate) for rate in (1e-3, 2e-3, 5e-4)}


def depth_and_rank() -> dict[str, Run | Study]:
    """Centralised progress by steps, depth and rank: what the planner's value of a step is fitted to."""
    problem, at = Problem(), (10, 20, 40, 80)
    runs: dict[str, Run | Study] = {f"depth {k}": Study(problem, at, depth=k, test_documents=333) for k in (6, 2, 4, 1, 3)}
    return runs | {f"rank {rank}": Study(problem, at, rank=rank, test_documents=333) for rank in (2, 32, 4, 16)}


def batches() -> dict[str, Run | Study]:
    """Centralised progress by samples with batches of several sizes: how far the planner may lower the batch of a slow site."""
    samples = (320, 640, 1280)
    return {
        f"batch {size}": Study(Problem(batch_size=size), tuple(count // size for count in samples), rank=16, depth=2, test_documents=333)
        for size in (16, 8, 4, 2)
    }


def round_lengths() -> dict[str, Run | Study]:
    """The progress of four equal sites by their steps in a round; 160 steps in all."""
    return {
        f"{steps} steps a round, seed 0": Run(
            Problem(),
            (1.0,) * 4,
            equal_steps(steps, (8,) * 4),
            Server(),
            seconds=160 / steps * (0.36 * steps + 6.5),
            evaluate_every=max(1, 20 // steps),
        )
        for steps in (10, 20, 40, 80)
    }


def _depth_by_tier() -> tuple[Given, ...]:
    """Slower tiers train fewer layers, so that all take equal steps in less time (LEGEND, arXiv 2412.20004)."""
    depths = (6, 6, 4, 4, 2, 2, 1, 1)
    return tuple(Given(_EQUAL_STEPS, rank, depth) for rank, depth in zip(RANKS, depths, strict=True))


def _depth_of_all() -> tuple[Given, ...]:
    """The same top layers at every site, what enters them being cached (FedAdapter, arXiv 2205.10162, with the depth given: two of six)."""
    return tuple(Given(_EQUAL_STEPS, rank, 2, cached=True) for rank in COMMON)


RULES: Final[dict[str, Rule]] = {
    "ours": Rule(Planned(), Server(), "Cosine"),
    "ours, constant rate": Rule(Planned(), Server()),
    "FedIT": Rule(equal_steps(_EQUAL_STEPS, COMMON), Server(method="FedIT", normalization="None"), rate=_EQUAL_RATE),
    "FedIT by speed, FedNova": Rule(steps_by_speed(_ROUND, COMMON), Server(method="FedIT", normalization="FedNova")),
    "FlexLoRA": Rule(
        equal_steps(_EQUAL_STEPS, RANKS), Server(method="FlexLoRA", normalization="None", frozen_residual=False), rate=_EQUAL_RATE
    ),
    "FedIT by speed": Rule(steps_by_speed(_ROUND, COMMON), Server(method="FedIT", normalization="None")),
    "HetLoRA": Rule(
        equal_steps(_EQUAL_STEPS, RANKS), Server(method="HetLoRA", normalization="None", frozen_residual=False), rate=_EQUAL_RATE
    ),
    "FLoRA": Rule(
        equal_steps(_EQUAL_STEPS, RANKS),
        Server(method="FLoRA", normalization="None", frozen_residual=False, max_rank=sum(RANKS)),
        rate=_EQUAL_RATE,
    ),
}
"""The rules of the main table, the most telling first."""
SWEEPS: Final = {
    "main": main,
    "longer": longer,
    "others": others,
    "ablations": ablations,
    "rates": rates,
    "settings": settings,
    "e2e": e2e,
    "depth-and-rank": depth_and_rank,
    "batches": batches,
    "round-length": round_lengths,
}
