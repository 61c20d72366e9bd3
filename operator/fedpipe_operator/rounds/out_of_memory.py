"""Out of memory: how much less a further attempt takes at once. The plan, and so the mathematics of the step, stays the same."""


def micro_batch(batch_size: int, out_of_memory: int) -> int | None:
    """Samples at once after so many attempts that the kernel ended for their memory: the batch, halved each time; None for the whole."""
    return max(1, batch_size >> out_of_memory) if out_of_memory else None
