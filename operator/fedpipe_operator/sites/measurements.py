"""What a site needed for one round, as the store keeps it with the round."""

from typing import Annotated

from pydantic import Field

from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.formatting import excerpt
from fedpipe_operator.sites.efficiency import Efficiency, efficiency_of
from fedpipe_operator.sites.profile import LONGEST_PROBLEM
from fedpipe_trainer.contract import Plan, Wire, halved


class Measurement(Wire):
    """What a site needed for one round."""

    step_seconds: Annotated[float, Field(ge=0)]
    """Seconds of all training steps."""
    other_seconds: Annotated[float, Field(ge=0)]
    """Seconds of the rest: load, evaluation, and transfers if they were not measured apart. 0: not measured."""
    transfer_seconds: Annotated[float, Field(ge=0)] | None = None
    """Seconds of all transfers with the store. None: an earlier version of the operator wrote this."""
    uploaded_bytes: Annotated[int, Field(ge=0)] = 0
    downloaded_bytes: Annotated[int, Field(ge=0)] = 0
    """With those of the base model, where no cache keeps it."""
    peak_memory_bytes: Annotated[int, Field(ge=0)]
    steps: Annotated[int, Field(ge=0)]
    out_of_memory: bool = False
    """Whether an attempt ran out of memory, even if a later one with smaller passes did not."""
    too_large: Annotated[int, Field(ge=0)] = 0
    """Samples of the smallest pass that ran out of memory; 0: none did, or an earlier version of the operator wrote this."""
    is_late: bool = False
    """Whether the site was still at work at the deadline, so that nothing was measured."""
    cache_hits: Annotated[int, Field(ge=0)] = 0
    """Passes that read the lower layers' output from the cache; 0, like the next, unless the plan caches activations."""
    cache_misses: Annotated[int, Field(ge=0)] = 0
    """Passes that computed it."""
    cache_held: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of the round's micro-batches that the cache holds after it; 1: all, or an earlier version of the operator wrote this."""
    cache_problem: str = ""
    """Why the activations that the plan caches were computed in every pass, and what to do; empty if they were not."""
    efficiency: Efficiency | None = None
    """How well the site used what it has. None: no training was measured, or an earlier version of the operator wrote this."""

    @property
    def found_share(self) -> float:
        """The share of the passes that found their activations in the cache; 0 without one."""
        return self.cache_hits / self.cache_passes if self.cache_passes else 0.0

    @property
    def cache_passes(self) -> int:
        """The passes that looked for their activations in the cache; 0 without one."""
        return self.cache_hits + self.cache_misses


def measurement(result: AdmittedUpdate, plan: Plan) -> Measurement:
    """What a completed training needed.

    Another attempt than the first does not evaluate once more, and goes on where the last one stopped: the seconds beside its steps are not
    those that a round needs, and are left out.
    """
    seconds = result.measured.seconds
    ran_out = 0 < result.micro_batch_size < plan.micro_batch
    return Measurement(
        step_seconds=seconds.get("train", 0.0),
        other_seconds=0.0 if result.attempt else sum(value for phase, value in seconds.items() if phase not in {"train", "transfer"}),
        transfer_seconds=seconds.get("transfer", 0.0),
        uploaded_bytes=result.measured.uploaded_bytes,
        downloaded_bytes=result.measured.downloaded_bytes,
        peak_memory_bytes=result.measured.peak_memory_bytes,
        steps=max(0, result.steps - result.resumed_from_step),
        out_of_memory=ran_out,
        too_large=_smallest_failed(plan.micro_batch, result.micro_batch_size) if ran_out else 0,
        cache_hits=result.cache_hits if plan.cache_activations else 0,
        cache_misses=result.cache_misses if plan.cache_activations else 0,
        cache_held=result.cache_held if plan.cache_activations else 1.0,
        cache_problem=excerpt(result.cache_problem, LONGEST_PROBLEM) if plan.cache_activations else "",
        efficiency=efficiency_of(result),
    )


def _smallest_failed(planned: int, found: int) -> int:
    """Samples of the smallest pass that ran out of memory, of those that the trainer tried from the plan's down to the one it found."""
    return planned if halved(planned) <= found else _smallest_failed(halved(planned), found)
