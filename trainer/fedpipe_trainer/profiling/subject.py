"""What a profile measures: a loaded base together with a site's samples."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedpipe_trainer.contract import Objective, WeightShape
from fedpipe_trainer.data import Example
from fedpipe_trainer.model import Base
from fedpipe_trainer.parallel import WorkerGroup, processes_of


@dataclass(frozen=True)
class Subject:
    """A base without adapters, and what is trained on it."""

    base: Base
    objective: Objective
    weights: Sequence[WeightShape]
    """The weights that may get an adapter."""
    examples: Sequence[Example]
    rank: int
    """Rank of the adapters while steps are measured."""
    seed: int
    workers: WorkerGroup | None = None
    """The processes with which its steps are divided, whose last `load` is of the same base."""

    @property
    def processes(self) -> int:
        """Among which its steps are divided."""
        return processes_of(self.workers)
