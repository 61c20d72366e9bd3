"""The dashboard *Fleet*: all runs and sites of the chosen namespaces."""

from typing import Final

from grafana_foundation_sdk.models import units

from observability.model import OF_RELEASE, RELEASE, Dashboard, Kind, Panel, Query, Row, Threshold, Variable

_NAMESPACE: Final = f'{OF_RELEASE}, namespace=~"$namespace"'
_NO_FAILURE: Final = "no attempt has failed"
_NO_GPU: Final = "needs NVIDIA's dcgm-exporter in the same Prometheus, with the names of pods"
_POD: Final = ".+-(profile|train|evaluate|export)-.*[0-9a-f]{10}.*"
"""Matches the trainers' pods: run, kind of work, …, hash (`names.job_object`), of which Kubernetes may cut the end for a pod."""


def _of_pods(metric: str) -> tuple[Query, ...]:
    """A metric of dcgm-exporter by pod: Prometheus renames its labels unless the scrape has `honorLabels`."""
    return tuple(
        Query(f'max by ({prefix}pod) ({metric}{{{prefix}namespace=~"$namespace", {prefix}pod=~"{_POD}"}})', f"{{{{{prefix}pod}}}}")
        for prefix in ("exported_", "")
    )


_RUNS: Final = Row(
    "Runs",
    (
        Panel(
            "Runs under way",
            "Runs that are profiled, planned, trained, aggregated, evaluated or exported now.",
            units.Short,
            (
                Query(
                    f'sum(fedpipe_run_status_condition{{{_NAMESPACE}, condition="Progressing", status="true"}}) or vector(0)',
                    "under way",
                ),
            ),
            Kind.VALUES,
            6,
            4,
        ),
        Panel(
            "Blocked runs",
            "Runs that make no progress although they have neither ended nor been suspended. The condition Progressing of the run says why "
            "(kubectl describe fft NAME).",
            units.Short,
            (
                Query(
                    f'count(fedpipe_run_status_condition{{{_NAMESPACE}, condition="Progressing", status="false"}} == 1 '
                    "unless on (namespace, run) "
                    'fedpipe_run_status_condition{condition=~"Suspended|Complete|Failed", status="true"} == 1) or vector(0)',
                    "blocked",
                ),
            ),
            Kind.VALUES,
            6,
            4,
            (Threshold(1, "orange"),),
        ),
        Panel(
            "Failed runs",
            "Runs that ended without a result and whose objects still exist. The condition Failed of the run says why.",
            units.Short,
            (
                Query(
                    f'sum(fedpipe_run_status_condition{{{_NAMESPACE}, condition="Failed", status="true"}}) or vector(0)',
                    "failed",
                ),
            ),
            Kind.VALUES,
            6,
            4,
            (Threshold(1, "red"),),
        ),
        Panel(
            "Sites that are not ready",
            "Sites at which no trainer pod can run: no node has their labels, or none has the capacity that they claim. "
            "The condition Ready of the site says why (kubectl describe edgesite NAME).",
            units.Short,
            (
                Query(
                    f'sum(fedpipe_site_status_condition{{{_NAMESPACE}, condition="Ready", status="false"}}) or vector(0)',
                    "not ready",
                ),
            ),
            Kind.VALUES,
            6,
            4,
            (Threshold(1, "orange"),),
        ),
        Panel(
            "Runs by condition",
            "How many runs have each condition. A run that is under way has Progressing, one that has ended Complete or Failed; "
            "Stalled means that only a person can change the state.",
            units.Short,
            (
                Query(
                    f"sum by (condition) (fedpipe_run_status_condition{{{_NAMESPACE}, "
                    'condition=~"Progressing|Suspended|Complete|Failed|Stalled", status="true"})',
                    "{{condition}}",
                ),
            ),
        ),
        Panel(
            "Progress of each run",
            "How much of each run is done, by rounds and by the sites of the round under way. The dashboard Run shows one of them.",
            units.PercentUnit,
            (
                Query(
                    f"max by (namespace, run) (fedpipe_run_progress_ratio{{{_NAMESPACE}}})",
                    "{{namespace}}/{{run}}",
                ),
            ),
            Kind.BARS,
        ),
        Panel(
            "Runs that ended",
            "Runs that ended since the operator started, with the reason of the condition Complete or Failed.",
            units.Short,
            (
                Query(
                    f"sum by (namespace, result, reason) (fedpipe_runs_finished_total{{{_NAMESPACE}}}) > 0",
                    "{{namespace}}: {{result}}, {{reason}}",
                ),
            ),
            Kind.BARS,
            may_be_empty="no run has ended since the operator started",
        ),
    ),
)

_SITES: Final = Row(
    "Sites",
    (
        Panel(
            "Sites that are ready",
            "Whether trainer pods can run at the sites: true if a node of the pool has what the site claims, unknown until the operator "
            "has looked.",
            units.Short,
            (
                Query(
                    f'sum by (status) (fedpipe_site_status_condition{{{_NAMESPACE}, condition="Ready", site=~"$site"}})',
                    "{{status}}",
                ),
            ),
        ),
        Panel(
            "Jobs at each site",
            "Pending Jobs wait for a node, an image or a volume; running ones profile, train or evaluate.",
            units.Short,
            (
                Query(
                    f'sum by (namespace, site, state) (fedpipe_site_jobs{{{_NAMESPACE}, site=~"$site"}})',
                    "{{namespace}}/{{site}} {{state}}",
                ),
            ),
        ),
        Panel(
            "Failed attempts by reason",
            "Attempts at a task that failed, per hour. docs/reasons.md explains each reason and what to do about it.",
            units.Short,
            (
                Query(
                    f'sum by (reason) (rate(fedpipe_attempts_total{{{_NAMESPACE}, site=~"$site", reason!="Completed"}}'
                    "[$__rate_interval])) * 3600",
                    "{{reason}}",
                ),
            ),
            may_be_empty=_NO_FAILURE,
        ),
        Panel(
            "Sites with failing attempts",
            "The sites with most failed attempts since the operator started, by kind of work and reason.",
            units.Short,
            (
                Query(
                    "topk(20, sum by (namespace, site, task, reason) "
                    f'(fedpipe_attempts_total{{{_NAMESPACE}, site=~"$site", reason!="Completed"}}))',
                    "failed attempts",
                ),
            ),
            Kind.TABLE,
            may_be_empty=_NO_FAILURE,
        ),
        Panel(
            "Updates that were refused",
            "Updates of sites that were not aggregated, since the operator started: they did not fit their task or plan, held NaN or "
            "infinite values, or were too large.",
            units.Short,
            (
                Query(
                    f"sum by (namespace, reason) (fedpipe_updates_refused_total{{{_NAMESPACE}}}) > 0",
                    "{{namespace}}: {{reason}}",
                ),
            ),
            Kind.BARS,
            may_be_empty="no update was refused",
        ),
        Panel(
            "Plans that were changed",
            "Plans that evidence of an earlier round changed, and attempts that ran out of memory, since the operator started.",
            units.Short,
            (
                Query(
                    f"sum by (namespace, reason) (fedpipe_replans_total{{{_NAMESPACE}}}) > 0",
                    "{{namespace}}: plans, {{reason}}",
                ),
                Query(
                    f"sum by (namespace, task) (fedpipe_out_of_memory_total{{{_NAMESPACE}}}) > 0",
                    "{{namespace}}: OOM, {{task}}",
                ),
            ),
            Kind.BARS,
            may_be_empty="no plan was changed, and no attempt ran out of memory",
        ),
    ),
)

_HARDWARE: Final = Row(
    "Use of the hardware",
    (
        Panel(
            "Tokens per second",
            "Of the steps of each site's last training; a site that is much slower than the others of its kind is worth a look.",
            units.Short,
            (
                Query(
                    f'max by (namespace, site) (fedpipe_site_tokens_per_second{{{_NAMESPACE}, site=~"$site"}})',
                    "{{namespace}}/{{site}}",
                ),
            ),
            may_be_empty="no run is under way in which a site has finished a training",
        ),
        Panel(
            "GPU use by trainer pod",
            "The share of time in which the pod's GPU was busy, as NVIDIA's dcgm-exporter measures it.",
            units.Percent,
            _of_pods("DCGM_FI_DEV_GPU_UTIL"),
            may_be_empty=_NO_GPU,
        ),
        Panel(
            "GPU memory by trainer pod",
            "The memory of the GPU that is in use, as NVIDIA's dcgm-exporter measures it (in MiB).",
            units.Mebibytes,
            _of_pods("DCGM_FI_DEV_FB_USED"),
            may_be_empty=_NO_GPU,
        ),
    ),
)

FLEET: Final = Dashboard(
    "fedpipe-fleet",
    "FedPipe / Fleet",
    "All runs and sites: what is under way, what is blocked, what fails and why.",
    (
        RELEASE,
        Variable("namespace", "Namespace", f"label_values(fedpipe_site_status_condition{{{OF_RELEASE}}}, namespace)"),
        Variable("site", "Site", f"label_values(fedpipe_site_status_condition{{{_NAMESPACE}}}, site)"),
    ),
    (_RUNS, _SITES, _HARDWARE),
)
