"""The batch of each site: one that is slow or has few samples takes smaller batches than the run's, so that it takes more steps.

With one batch for all, the fastest site takes many times the steps of the slowest. The aggregation divides an increment by its steps, so a
round moves the global adapter about as far as the harmonic mean of the steps: the few of the slow sites decide. FedPipe (arXiv 2404.06448,
as described in its abstract and summaries) gives each site a batch by its speed instead. Here a site that takes fewer steps than the
fastest, for its speed or because it has few samples, takes the batch with which

    min(steps, the fleet's most) · √(batch / the run's batch)

is greatest: AdamW's steps lose about the root of the batch (square-root scaling rule, Malladi et al., arXiv 2205.10287). Where small
batches are as slow as large ones (a GPU that they do not fill), the batch stays as it is. It is at least a quarter of the run's, for which
the learning rate was chosen: MiniLM learned as much per sample with 16, 8 and 4, and nothing with 2 (benchmarks/README.md, *Batches*).
"""

from math import sqrt
from typing import Final

from fedpipe_operator.planning.choices import other_seconds_of, seconds_of_steps, steps_within
from fedpipe_operator.planning.passes import largest_pass, largest_step, samples_of_a_step
from fedpipe_operator.planning.request import PlanRequest
from fedpipe_operator.planning.site_problem import STEPS_EXPONENT, Solution
from fedpipe_operator.planning.time_model import step_seconds
from fedpipe_operator.sites import SiteProfile

SMALLEST_SHARE: Final = 1 / 4
"""Of the run's batch."""


def with_batch(request: PlanRequest, site: SiteProfile, solution: Solution, most: float, seconds: float) -> Solution:
    """The solution with the best batch, and as many steps of it as the round has time for.

    Args:
        request: the run.
        site: the site.
        solution: with the run's batch.
        most: steps of the site of the fleet that takes most with the run's batch; more than these are worth no more.
        seconds: the length of the round.
    """
    kept = request.kept.get(site.name)
    counts_on_smaller = solution.choice.cached and kept is not None and kept.batch_size < solution.choice.batch
    if solution.steps >= most and not counts_on_smaller:
        return solution
    upload, samples, whole_batch = request.update_bytes(site, solution.ranks), site.train_samples, solution.choice.batch

    def of_batch(batch: int) -> Solution:
        micro_batch = min(largest_pass(batch, site.devices), solution.choice.micro_batch)
        choice = solution.choice._replace(batch=batch, micro_batch=micro_batch)
        # Smaller passes evaluate more slowly as well.
        other_seconds = float(other_seconds_of(request, site, choice.bits, upload, choice.micro_batch))
        steps = min(request.wanted_steps(site, batch), steps_within(request, site, choice, seconds - other_seconds))
        gain = min(most, steps) / solution.steps * sqrt(samples_of_a_step(samples, batch) / samples_of_a_step(samples, whole_batch))
        value = solution.value * gain**STEPS_EXPONENT
        return solution._replace(
            choice=choice, steps=steps, seconds=other_seconds + seconds_of_steps(request, site, choice, steps), value=value
        )

    smaller = [of_batch(batch) for batch in reversed(_batches(request, site)) if batch < whole_batch]
    # What the cache holds is of the last round's batch only.
    whole = of_batch(whole_batch) if counts_on_smaller else solution
    best = max((whole, *smaller), key=lambda one: one.value)
    return best if best.steps else solution


def most_more_steps(request: PlanRequest, site: SiteProfile) -> float:
    """How many times as many steps the site can take with smaller batches than the run's, in the same time."""
    bits = max(set(request.spec.planning.bits) - set(site.unsupported), default=request.spec.planning.bits[0])
    seconds = [float(step_seconds(site, bits, batch)) for batch in _batches(request, site)]
    return seconds[-1] / min(seconds)


def _batches(request: PlanRequest, site: SiteProfile) -> list[int]:
    """What the site makes of the run's batch, and of those below it that it may take: the samples of its largest step, ascending."""
    sizes = {largest_step(site.train_samples, batch) for batch in request.spec.planning.batch_sizes}
    return sorted(size for size in sizes if size == request.batch_of(site) or size >= SMALLEST_SHARE * request.batch)
