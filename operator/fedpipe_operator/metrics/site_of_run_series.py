"""The series of a site in a run: its plan, its last training, what it used. Pure.

There are some twenty a pair, so the number of pairs is bounded: a run shows 200 of its sites at most, those that failed and those that are
planned to take longest first; and all runs together 1,500 pairs, which they share evenly.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fedpipe_operator.metrics.run_record import PHASES, RunRecord, Training, Used
from fedpipe_operator.metrics.samples import Sample
from fedpipe_trainer.contract import Plan

MOST_SITES: Final = 200
"""Of one run."""
MOST_PAIRS: Final = 1500
"""Of all runs."""


def shown_sites(records: Mapping[str, RunRecord]) -> dict[str, Sequence[str]]:
    """The sites that are shown of each run, by the key of its record."""
    wanted = {key: min(len(one.sites), MOST_SITES) for key, one in records.items()}
    return {key: records[key].sites[:most] for key, most in shared(wanted, MOST_PAIRS).items()}


def shared(wanted: Mapping[str, int], most: int) -> dict[str, int]:
    """So much of `most` for each that none has less than another, unless it wants no more."""
    given: dict[str, int] = {}
    left = most
    for waiting, (key, number) in zip(range(len(wanted), 0, -1), sorted(wanted.items(), key=lambda one: (one[1], one[0])), strict=True):
        given[key] = min(number, left // waiting)
        left -= given[key]
    return given


def site_of_run_series(record: RunRecord, sites: Sequence[str]) -> Iterator[Sample]:
    """The series of these sites in a run."""
    plans = record.plan.plans if record.plan else {}
    for site in sites:
        of = (record.namespace, record.run, site)
        if site in plans:
            yield from _plan(of, plans[site])
        if site in record.trainings:
            yield from _training(of, record.trainings[site])
        yield Sample("site_failed_rounds", of, record.failed_rounds.get(site, 0))
        yield from _used(of, record.used.get(site, Used()))


def _plan(of: tuple[str, ...], plan: Plan) -> Iterator[Sample]:
    yield Sample("plan_bits", of, plan.bits)
    yield Sample("plan_rank", of, max(plan.ranks.values(), default=0))
    yield Sample("plan_depth", of, plan.trained_layers)
    yield Sample("plan_steps", of, plan.steps)
    yield Sample("plan_memory_bytes", of, plan.forecast.memory_bytes)
    yield Sample("plan_seconds", of, plan.forecast.seconds)


def _training(of: tuple[str, ...], training: Training) -> Iterator[Sample]:
    yield Sample("task_peak_memory_bytes", of, training.peak_memory_bytes)
    yield Sample("task_seconds", of, training.seconds)
    for phase, seconds in zip(PHASES, training.by_phase, strict=True):
        if seconds is not None:
            yield Sample("task_phase_seconds", (*of, phase), seconds)
    found = training.efficiency
    measured = (
        ("task_loss", training.loss),
        ("site_tokens_per_second", found.tokens_per_second),
        ("site_padded_tokens_per_second", found.padded_tokens_per_second),
        ("site_mfu_ratio", found.mfu),
        ("site_granularity_ratio", found.granularity),
        ("site_network_bits_per_second", found.bits_per_second),
        ("site_update_cosine", found.update_cosine),
    )
    yield from (Sample(name, of, value) for name, value in measured if value is not None)
    if found.tokens_per_joule is not None:
        yield Sample("site_tokens_per_joule", (*of, found.energy_source or ""), found.tokens_per_joule)


def _used(of: tuple[str, ...], used: Used) -> Iterator[Sample]:
    yield Sample("site_transferred_bytes_total", (*of, "up"), used.uploaded_bytes)
    yield Sample("site_transferred_bytes_total", (*of, "down"), used.downloaded_bytes)
    if used.joules is not None:
        yield Sample("site_energy_joules_total", of, used.joules)
