"""Every metric of the operator: its name, type, labels and meaning. `docs/metrics.md` is generated from this table.

A series of a run or a site goes with its object. The values of all labels but names of objects are bounded sets, so the number of series
grows with the number of runs and sites only; of sites of runs, `site_of_run_series` says how many are shown.

A counter begins at 0 when the operator starts, and counts what happens from then on: what happened to a run before is not counted again.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PREFIX: Final = "fedpipe_"


class Type(StrEnum):
    """A metric's type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    """As it is queried, with the prefix; a histogram's without `_bucket`, `_sum` and `_count`."""
    type: Type
    labels: tuple[str, ...]
    help: str
    """What it measures, with the values of labels that are no names of objects."""


_RUN: Final = ("namespace", "run")
_SITE: Final = ("namespace", "site")
_SITE_OF_RUN: Final = ("namespace", "run", "site")


def _counter(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(PREFIX + name, Type.COUNTER, labels, text)


def _gauge(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(PREFIX + name, Type.GAUGE, labels, text)


def _histogram(name: str, labels: tuple[str, ...], text: str) -> Metric:
    return Metric(PREFIX + name, Type.HISTOGRAM, labels, text)


OPERATOR: Final = (
    _gauge("build_info", ("version",), "1, with the version of the operator."),
    _gauge("leader", (), "1 in the replica that reconciles, 0 in one that stands by."),
    _counter(
        "reconcile_total",
        ("kind", "result"),
        "Reconciles; kind: run, site, cache; result: success, transient_error (retried, likely to succeed), error.",
    ),
    _histogram("reconcile_duration_seconds", ("kind",), "Seconds of a reconcile; kind as above."),
    _gauge("workqueue_depth", ("queue",), "Keys that are due or in progress; queue: run, site, cache."),
    _gauge("workqueue_oldest_seconds", ("queue",), "Seconds since the oldest key became due that is not reconciled yet, or in progress."),
    _gauge(
        "watch_last_event_timestamp_seconds",
        ("resource",),
        "Unix time of the last event of a watch; resource: federatedfinetunes, edgesites, jobs, nodes.",
    ),
    _counter(
        "kube_requests_total",
        ("verb", "reason"),
        "Calls to the API server, watches left out; verb: get, list, create, patch, delete, deletecollection; reason: OK, or the error's.",
    ),
    _histogram("kube_request_duration_seconds", ("verb",), "Seconds of a call to the API server."),
    _counter(
        "store_requests_total",
        ("operation", "reason"),
        "Calls to stores by the operator's main process; operation: read, size, list, write, create, …; reason: OK, or the error's.",
    ),
    _histogram("store_request_duration_seconds", ("operation",), "Seconds of a call to a store."),
    _histogram(
        "aggregation_duration_seconds",
        ("where", "method"),
        "Seconds of an aggregation; where: operator, job; method: that of spec.aggregation.",
    ),
    _counter("aggregation_bytes_total", ("where", "method"), "Bytes of updates that aggregations read."),
)
RUNS: Final = (
    _gauge("run_status_condition", (*_RUN, "condition", "status"), "1 for the status (true, false, unknown) of a run's condition."),
    _counter(
        "runs_finished_total", ("namespace", "result", "reason"), "Runs that ended; result: complete, failed; reason: of that condition."
    ),
    _gauge("run_ended_timestamp_seconds", _RUN, "Unix time at which the run became complete or failed; left out before that."),
    _gauge("run_round", _RUN, "The round under way, 0 before the first plan; between two rounds, and at the end, the last one."),
    _gauge("run_rounds", _RUN, "The rounds that the run may take."),
    _gauge("run_progress_ratio", _RUN, "How much of the run is done, as status.progress says it."),
    _gauge(
        "run_stage_started_timestamp_seconds",
        (*_RUN, "stage"),
        "Unix time at which the first job of the stage under way started; stage: the reason of the condition Progressing.",
    ),
    _gauge("run_stage_deadline_seconds", (*_RUN, "stage"), "Seconds that the stage under way may take: rounds.deadline."),
    _gauge("run_updates", (*_RUN, "state"), "Updates of the round under way; state: expected, needed, received, refused, late."),
    _gauge(
        "run_metric",
        (*_RUN, "metric"),
        "Figures of the last round that was evaluated, aggregated over the sites; metric: loss, accuracy, perplexity, and others.",
    ),
    _gauge("run_truncated_energy_ratio", _RUN, "The largest share of a weight's energy that the last aggregation truncated."),
)
SITES: Final = (
    _gauge("site_status_condition", (*_SITE, "condition", "status"), "1 for the status (true, false, unknown) of a site's condition."),
    _gauge("site_jobs", (*_SITE, "state"), "Jobs at a site; state: pending, running."),
    _gauge(
        "site_memory_bandwidth_bytes_per_second", _SITE, "Bytes that the device's memory reads and writes a second, by the newest profile."
    ),
    _gauge(
        "site_bandwidth_bits_per_second",
        (*_SITE, "direction"),
        "Bits a second between store and site, by the newest profile; direction: up, down; absent where it was not measured.",
    ),
    _counter(
        "attempts_total",
        (*_SITE, "task", "reason"),
        "Attempts that ended; reason: Completed, or one of docs/reasons.md, or Other; site: empty for the run's own.",
    ),
    _counter(
        "updates_refused_total",
        ("namespace", "reason"),
        "Updates that were refused, at first sight or by the gate; reason: see docs/reasons.md.",
    ),
    _counter(
        "replans_total",
        ("namespace", "reason"),
        "Plans of sites that were changed by what was found since the round before; reason: OutOfMemory, CacheFailed, DeadlineExceeded, "
        "InTimeAgain, StepsOff, LoadingOff, TransfersOff, MemoryOff, TriedAgain, ResourcesChanged, SiteChanged, Stalled.",
    ),
    _counter("out_of_memory_total", ("namespace", "task"), "Attempts that ran out of memory."),
)
SITES_OF_RUNS: Final = (
    _gauge("plan_bits", _SITE_OF_RUN, "Bits of the base in the site's plan."),
    _gauge("plan_rank", _SITE_OF_RUN, "The largest rank in the site's plan."),
    _gauge("plan_depth", _SITE_OF_RUN, "Layers that the site's plan trains."),
    _gauge("plan_steps", _SITE_OF_RUN, "Optimiser steps in the site's plan."),
    _gauge("plan_memory_bytes", _SITE_OF_RUN, "Peak memory that the plan predicts."),
    _gauge("plan_seconds", _SITE_OF_RUN, "Seconds that the plan predicts for the site's task."),
    _gauge("task_peak_memory_bytes", _SITE_OF_RUN, "Peak memory that the site's last training measured."),
    _gauge("task_seconds", _SITE_OF_RUN, "Seconds of the site's last training, to be compared with plan_seconds."),
    _gauge("task_phase_seconds", (*_SITE_OF_RUN, "phase"), "Seconds of the last training by phase: load, train, evaluate, transfer."),
    _gauge("task_loss", _SITE_OF_RUN, "Mean training loss of the site's last training, as far as its policy allows."),
    _gauge("site_tokens_per_second", _SITE_OF_RUN, "Tokens a second of the steps of the site's last training, without padding."),
    _gauge("site_padded_tokens_per_second", _SITE_OF_RUN, "The same with the padding that was computed beside them."),
    _gauge(
        "site_mfu_ratio",
        _SITE_OF_RUN,
        "Model FLOPs utilisation of the site's last training, without padding; absent where the FLOP of a token are not known.",
    ),
    _gauge(
        "site_tokens_per_joule",
        (*_SITE_OF_RUN, "source"),
        "Energy efficiency of the site's last training; source: NVML, RAPL, or empty; absent where the platform has no counter.",
    ),
    _gauge(
        "site_granularity_ratio",
        _SITE_OF_RUN,
        "Seconds of the steps of the site's last training over those of its transfers; below 1 it waited for the network longer.",
    ),
    _gauge(
        "site_network_bits_per_second", _SITE_OF_RUN, "Bits of both directions, over the seconds of all transfers of the last training."
    ),
    _gauge(
        "site_update_cosine",
        _SITE_OF_RUN,
        "Cosine between the increment of the site's last training and what arrived of it through the codec; absent without one.",
    ),
    _gauge("site_failed_rounds", _SITE_OF_RUN, "Rounds in a row, up to the last committed one, in which the site was selected and failed."),
    _counter(
        "site_transferred_bytes_total",
        (*_SITE_OF_RUN, "direction"),
        "Bytes between store and site, of attempts that ended; direction: up, down.",
    ),
    _counter("site_energy_joules_total", _SITE_OF_RUN, "Energy of the site's trainings; absent where the platform has no counter."),
)
CATALOGUE: Final = (*OPERATOR, *RUNS, *SITES, *SITES_OF_RUNS)
