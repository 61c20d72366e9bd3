"""What is compared: optimizers of the server, codecs, and numbers of local steps, on the task of `examples/edge`."""

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
    """Of the optimizer or the codec, with what is not its default."""
    seed: int
    optimizer: dict[str, Any] = field(default_factory=dict, hash=False)
    """`spec.aggregation.optimizer`."""
    steps: int = STEPS
    codec: dict[str, Any] = field(default_factory=dict, hash=False)
    """`spec.codec`."""

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
CODECS: Final[dict[str, dict[str, Any]]] = {
    "Float16": {"type": "Float16"},
    "Int8": {"type": "Int8"},
    "Int4": {"type": "Int4"},
    "Int4 without feedback": {"type": "Int4", "errorFeedback": False},
    "Int4, Int8 down": {"type": "Int4", "downlink": "Int8"},
    "LowRank 2": {"type": "LowRank", "rank": 2},
    "TopK 0.1": {"type": "TopK", "fraction": 0.1},
    "TopK 0.1, any loss": {"type": "TopK", "fraction": 0.1, "minCosine": 0, "maxRelativeError": 1},
}
"""By name, of FedAvg; the last one shows what the bounds are for."""
LOCAL_STEPS: Final = (4, 8, 16)
"""Of FedAvg with the first seed, for the granularity."""


def arms(seeds: tuple[int, ...] = SEEDS) -> list[Arm]:
    """All arms: of optimizers and codecs by seed, so that a benchmark that is stopped has compared all with some; then the others."""
    compared = [arm for seed in seeds for arm in (*_optimizers(seed), *_codecs(seed))]
    return [*compared, *(Arm("FedAvg", seeds[0], OPTIMIZERS["FedAvg"], steps) for steps in LOCAL_STEPS if steps != STEPS)]


def _optimizers(seed: int) -> list[Arm]:
    return [Arm(name, seed, optimizer) for name, optimizer in OPTIMIZERS.items()]


def _codecs(seed: int) -> list[Arm]:
    return [Arm(name, seed, codec=codec) for name, codec in CODECS.items()]


def changed(spec: dict[str, Any], arm: Arm, rounds: int) -> dict[str, Any]:
    """The example's spec with equal plans that do not depend on how fast the machine is, and the arm's optimizer; nothing is generated."""
    plan = {"bits": 32, "rank": RANK, "steps": arm.steps, "batchSize": BATCH}
    return spec | {
        "rounds": spec["rounds"] | {"count": rounds},
        "planning": {"mode": "Manual", "plans": [plan], "bits": [32], "ranks": [0, RANK], "batchSizes": [BATCH]},
        "training": {"learningRate": LEARNING_RATE, "seed": arm.seed},
        "aggregation": {"optimizer": arm.optimizer},
        "codec": arm.codec,
        "evaluation": {"maxSamples": 120, "generations": 0},
        "export": {"adapter": True, "merged": False},
    }
