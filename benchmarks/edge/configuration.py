"""What is compared: optimizers of the server, and numbers of local steps, on the task of `examples/edge`."""

from dataclasses import dataclass, field
from typing import Any, Final

ROUNDS: Final = 6
SEEDS: Final = (0, 1, 2)
STEPS: Final = 4
"""Of a site in a round: few, so that what the server does between two rounds counts."""
LEARNING_RATE: Final = 1e-3
RANK: Final = 8
BATCH: Final = 16


@dataclass(frozen=True)
class Arm:
    """One way to run the task, with one seed."""

    name: str
    """Of the optimizer with what is not its default."""
    seed: int
    optimizer: dict[str, Any] = field(default_factory=dict, hash=False)
    """`spec.aggregation.optimizer`."""
    steps: int = STEPS

    @property
    def key(self) -> str:
        """The name of its file."""
        return f"{self.name.replace(' ', '-')}-{self.steps}-{self.seed}"


OPTIMIZERS: Final[dict[str, dict[str, Any]]] = {
    "FedAvg": {"type": "FedAvg"},
    "FedAvgM": {"type": "FedAvgM"},
    "FedAdamW": {"type": "FedAdamW"},
    "FedAdamW 0.03": {"type": "FedAdamW", "learningRate": 0.03},
}
"""By name: with the defaults, and FedAdamW at a larger learning rate of the server, too."""
LOCAL_STEPS: Final = (4, 8, 16)
"""Of FedAvg with the first seed, for the granularity."""


def arms(seeds: tuple[int, ...] = SEEDS) -> list[Arm]:
    """All arms: those of the optimizers by seed, so that a benchmark that is stopped has compared all with some; then the other steps."""
    optimizers = [Arm(name, seed, optimizer) for seed in seeds for name, optimizer in OPTIMIZERS.items()]
    return [*optimizers, *(Arm("FedAvg", seeds[0], OPTIMIZERS["FedAvg"], steps) for steps in LOCAL_STEPS if steps != STEPS)]


def changed(spec: dict[str, Any], arm: Arm, rounds: int) -> dict[str, Any]:
    """The example's spec with equal plans that do not depend on how fast the machine is, and the arm's optimizer; nothing is generated."""
    plan = {"bits": 32, "rank": RANK, "steps": arm.steps, "batchSize": BATCH}
    return spec | {
        "rounds": spec["rounds"] | {"count": rounds},
        "planning": {"mode": "Manual", "plans": [plan], "bits": [32], "ranks": [0, RANK], "batchSizes": [BATCH]},
        "training": {"learningRate": LEARNING_RATE, "seed": arm.seed},
        "aggregation": {"optimizer": arm.optimizer},
        "evaluation": {"maxSamples": 120, "generations": 0},
        "export": {"adapter": True, "merged": False},
    }
