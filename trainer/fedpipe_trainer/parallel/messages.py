"""What the first process tells a worker, and what the worker answers. Both run the same code, so these are no part of the contract."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedpipe_trainer.activation_cache import CacheCounts
from fedpipe_trainer.contract import Bits, Failure, Objective
from fedpipe_trainer.contract.task import Attention
from fedpipe_trainer.data import Example


@dataclass(frozen=True)
class Piece:
    """A micro-batch of a step."""

    examples: tuple[Example, ...]
    seed: int | None = None
    """Of torch's generator before it is computed, so that its dropout is the same in whichever process. None: the generator goes on."""


@dataclass(frozen=True)
class LoadBase:
    """Load this base. It is answered by `Ready`."""

    folder: Path
    fingerprint: str
    bits: Bits
    objective: Objective
    attention: Attention | None
    modules_to_save: tuple[str, ...] = ()


@dataclass(frozen=True)
class Join:
    """Join the others at this file, of which torch.distributed makes its store. It is answered by `Ready`."""

    store: Path
    log_fields: Mapping[str, object]
    """What lines of the log are about."""


@dataclass(frozen=True)
class SessionRequest:
    """How gradients are computed until the session is closed. It is answered by `Ready`."""

    ranks: Mapping[str, int]
    """By weight."""
    scales: Mapping[str, float]
    """The factor that multiplies B·A, by weight."""
    seed: int
    """Of the initial factors."""
    dropout: float = 0.0
    start: Path | None = None
    """The file of the global adapter."""
    gradient_checkpointing: bool = False
    lowest_layer: int = 0
    cache_activations: bool = False
    keeps_reference: bool = False
    """Whether the margins of a preference's reference are kept in the site's cache; what measures a site computes them every time."""
    cache: Path = field(default_factory=Path)
    """The folder of the site's cache."""
    activation_cache_bytes: int | None = None
    memory_limit_bytes: int | None = None
    """Of each process."""
    is_deterministic: bool = False


@dataclass(frozen=True)
class ComputePieces:
    """Receive the parameters, then compute the gradients of these micro-batches. It is answered by `Computed`."""

    pieces: tuple[Piece, ...]
    targets: int
    """Of the whole step."""


@dataclass(frozen=True)
class AddGradients:
    """Send the gradients of the last `Computed`. It has no answer."""


@dataclass(frozen=True)
class CloseSession:
    """It is answered by `Closed`, whether there is a session or not."""


@dataclass(frozen=True)
class Ready:
    """What was asked for is prepared."""


@dataclass(frozen=True)
class Computed:
    """What the pieces of a worker gave."""

    loss: float = 0.0
    """Summed over their targets."""
    reached: frozenset[str] = frozenset()
    """The keys of the parameters that have a gradient."""
    is_out_of_memory: bool = False
    """Whether memory did not suffice; then there is nothing else."""


@dataclass(frozen=True)
class Failed:
    """The last message could not be obeyed, and there is no session any more."""

    failure: Failure


@dataclass(frozen=True)
class Closed:
    """The session is over."""

    cache: CacheCounts


Message = LoadBase | Join | SessionRequest | ComputePieces | AddGradients | CloseSession
Answer = Ready | Computed | Failed | Closed
