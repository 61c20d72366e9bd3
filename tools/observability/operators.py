"""The dashboard *Operator*: whether the operator keeps up, and whether API server and store answer it."""

from typing import Final

from grafana_foundation_sdk.models import units

from observability.model import OF_RELEASE, RELEASE, Dashboard, Kind, Panel, Query, Row, Threshold, Variable

_JOB: Final = f'{OF_RELEASE}, job=~"$job"'


def _rate(metric: str, by: str, labels: str = _JOB) -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def _p99(histogram: str, by: str) -> Query:
    return Query(f"histogram_quantile(0.99, {_rate(f'{histogram}_bucket', f'le, {by}')})", f"{{{{{by}}}}}")


_REPLICAS: Final = Row(
    "Replicas",
    (
        Panel(
            "Operators that reconcile",
            "1 for each release. 0: no Job of its runs is started and no round committed. More than 1 is a fault.",
            units.Short,
            (Query(f"sum by (release) (fedpipe_leader{{{_JOB}}}) or on () vector(0)", "reconciling {{release}}"),),
            Kind.VALUES,
            4,
            thresholds=(Threshold(0, "red"), Threshold(1, "green")),
        ),
        Panel(
            "Scrapes that succeed",
            "1 where Prometheus reaches the replica's port for metrics.",
            units.Short,
            (Query(f"min by (instance) (up{{{_JOB}}})", "{{instance}}"),),
            Kind.VALUES,
            4,
            thresholds=(Threshold(0, "red"), Threshold(1, "green")),
        ),
        Panel(
            "Versions",
            "The version of each replica, and which of them reconciles.",
            units.Short,
            (
                Query(
                    f"max by (release, job, instance) (fedpipe_leader{{{_JOB}}}) "
                    "* on (release, job, instance) group_left (version) fedpipe_build_info",
                    "leader",
                ),
            ),
            Kind.TABLE,
        ),
        Panel(
            "Memory of the process",
            "Resident memory; an aggregation in the operator's pod is a process of its own and not counted here.",
            units.BytesIEC,
            (Query(f"process_resident_memory_bytes{{{_JOB}}}", "{{instance}}"),),
        ),
        Panel(
            "Processors in use",
            "Seconds of processor time per second: how many processors the operator keeps busy.",
            units.Short,
            (Query(f"rate(process_cpu_seconds_total{{{_JOB}}}[$__rate_interval])", "{{instance}}"),),
        ),
        Panel(
            "Open file descriptors",
            "A number that only grows is a leak of connections.",
            units.Short,
            (Query(f"process_open_fds{{{_JOB}}}", "{{instance}}"),),
        ),
    ),
)

_RECONCILES: Final = Row(
    "Reconciles",
    (
        Panel(
            "Reconciles per second",
            "transient_error passes by itself and is tried again; error is a fault of ours or a spec that a person must correct.",
            units.Short,
            (Query(_rate("fedpipe_reconcile_total", "kind, result"), "{{kind}}: {{result}}"),),
        ),
        Panel(
            "p99 of a reconcile",
            "Of a hundred reconciles, 99 take no longer. A slow store or API server shows here first.",
            units.Seconds,
            (_p99("fedpipe_reconcile_duration_seconds", "kind"),),
        ),
        Panel(
            "Keys in the queue",
            "Objects that are due or being reconciled. Many for minutes: raise maxConcurrentReconciles, or look at the slow calls below.",
            units.Short,
            (Query(f"max by (queue) (fedpipe_workqueue_depth{{{_JOB}}})", "{{queue}}"),),
        ),
        Panel(
            "Age of the oldest key",
            "Seconds since the oldest key became due that is not reconciled yet. Above 300 the alert FedPipeReconcileStuck fires.",
            units.Seconds,
            (Query(f"max by (queue) (fedpipe_workqueue_oldest_seconds{{{_JOB}}})", "{{queue}}"),),
            thresholds=(Threshold(300, "red"),),
        ),
        Panel(
            "Age of the last event of a watch",
            "A quiet cluster sends few events; one watch that is much older than the others may have gone silent.",
            units.Seconds,
            (Query(f"time() - max by (resource) (fedpipe_watch_last_event_timestamp_seconds{{{_JOB}}})", "{{resource}}"),),
        ),
    ),
)


def _calls(what: str, metric: str, by: str) -> Row:
    """Rate, errors and p99 of the calls to one server."""
    return Row(
        f"Calls to the {what}",
        (
            Panel(
                f"Calls to the {what} per second",
                "All calls of the operator; trainers call the store themselves and are not counted.",
                units.RequestsPerSecond,
                (Query(_rate(f"{metric}s_total", by), f"{{{{{by}}}}}"),),
            ),
            Panel(
                f"Failed calls to the {what} per second",
                "By the error's reason, which docs/reasons.md explains. That something is not there is an answer and no failure.",
                units.RequestsPerSecond,
                (Query(_rate(f"{metric}s_total", f"{by}, reason", f'{_JOB}, reason!="OK"'), f"{{{{{by}}}}}: {{{{reason}}}}"),),
                may_be_empty="no call failed",
            ),
            Panel(
                f"p99 of a call to the {what}",
                "Of a hundred calls of the operator, 99 take no longer.",
                units.Seconds,
                (_p99(f"{metric}_duration_seconds", by),),
            ),
        ),
    )


_AGGREGATIONS: Final = Row(
    "Aggregations",
    (
        Panel(
            "Seconds of an aggregation",
            "Mean seconds of an aggregation, in the operator's pod or in a Job, by method.",
            units.Seconds,
            (
                Query(
                    f"sum by (where, method) (fedpipe_aggregation_duration_seconds_sum{{{_JOB}}}) "
                    f"/ sum by (where, method) (fedpipe_aggregation_duration_seconds_count{{{_JOB}}})",
                    "{{where}}: {{method}}",
                ),
            ),
            may_be_empty="nothing was aggregated since the operator started",
        ),
        Panel(
            "Bytes that aggregations read",
            "Updates of sites, since the operator started. More than aggregationJobThreshold in a round goes to a Job.",
            units.BytesIEC,
            (Query(f"sum by (where, method) (fedpipe_aggregation_bytes_total{{{_JOB}}})", "{{where}}: {{method}}"),),
            may_be_empty="nothing was aggregated since the operator started",
        ),
    ),
)

OPERATOR: Final = Dashboard(
    "fedpipe-operator",
    "FedPipe / Operator",
    "The operator itself: replicas, reconciles, queues, watches, and its calls to the API server and to stores.",
    (RELEASE, Variable("job", "Scrape job", f"label_values(fedpipe_build_info{{{OF_RELEASE}}}, job)")),
    (
        _REPLICAS,
        _RECONCILES,
        _calls("API server", "fedpipe_kube_request", "verb"),
        _calls("store", "fedpipe_store_request", "operation"),
        _AGGREGATIONS,
    ),
)
