"""The dashboard *Run*: one run, from its progress to the forecasts of each site."""

from typing import Final

from grafana_foundation_sdk.models import units

from observability.model import OF_RELEASE, RELEASE, Dashboard, Kind, Panel, Query, Row, Threshold, Variable

_NAMESPACE: Final = f'{OF_RELEASE}, namespace="$namespace"'
_RUN: Final = f'{_NAMESPACE}, run="$run"'
_SITES: Final = f'{_RUN}, site=~"$site"'
_TRAINED: Final = "no site has finished a training"
_FORECAST: Final = (Threshold(0.75, "green"), Threshold(1.25, "orange"))
"""The alert FedPipeForecastOff has the same limits."""


def _by_site(metric: str, legend: str = "{{site}}") -> Query:
    return Query(f"max by (site) ({metric}{{{_SITES}}})", legend)


def _ratio(measured: str, predicted: str, legend: str) -> Query:
    return Query(f"max by (site) ({measured}{{{_SITES}}}) / max by (site) ({predicted}{{{_SITES}}})", legend)


_PROGRESS: Final = Row(
    "Progress",
    (
        Panel(
            "Progress",
            "How much of the run is done, as status.progress says it.",
            units.PercentUnit,
            (Query(f"max(fedpipe_run_progress_ratio{{{_RUN}}})", "done"),),
            Kind.VALUES,
            4,
        ),
        Panel(
            "Round",
            "The round under way, and how many rounds the run may take. A target or patience may end it earlier.",
            units.Short,
            (Query(f"max(fedpipe_run_round{{{_RUN}}})", "round"), Query(f"max(fedpipe_run_rounds{{{_RUN}}})", "of")),
            Kind.VALUES,
            4,
        ),
        Panel(
            "Conditions",
            "The conditions of the run as kubectl describe shows them. docs/reasons.md explains each.",
            units.Short,
            (Query(f"max by (condition, status) (fedpipe_run_status_condition{{{_RUN}}}) == 1", "value"),),
            Kind.TABLE,
        ),
        Panel(
            "Updates of the round",
            "Updates that the round under way expects and needs, and those that were received, refused or came too late. "
            "The round fails if fewer than needed can still arrive.",
            units.Short,
            (Query(f"max by (state) (fedpipe_run_updates{{{_RUN}}})", "{{state}}"),),
        ),
        Panel(
            "Time of the stage",
            "Seconds since the stage under way began, and how long it may take (rounds.deadline). After that, the run goes on without the "
            "sites that are not done.",
            units.Seconds,
            (
                Query(f"max by (stage) (time() - fedpipe_run_stage_started_timestamp_seconds{{{_RUN}}})", "{{stage}}"),
                Query(f"max by (stage) (fedpipe_run_stage_deadline_seconds{{{_RUN}}})", "{{stage}}: allowed"),
            ),
            may_be_empty="the run has ended, so that no stage is under way",
        ),
        Panel(
            "Round over time",
            "Read it together with the curves of quality: they share the crosshair.",
            units.Short,
            (Query(f"max(fedpipe_run_round{{{_RUN}}})", "round"),),
        ),
    ),
)

_QUALITY: Final = Row(
    "Quality",
    (
        Panel(
            "Metrics of the evaluated adapter",
            "What the sites measured of the last adapter that was evaluated, averaged by samples. It changes once a round; the "
            "first value is that of the untouched base model.",
            units.Short,
            (Query(f"max by (metric) (fedpipe_run_metric{{{_RUN}}})", "{{metric}}"),),
            may_be_empty="no adapter has been evaluated",
        ),
        Panel(
            "Training loss by site",
            "The mean loss of each site's last training. A site whose policy does not allow it has no curve.",
            units.Short,
            (_by_site("fedpipe_task_loss"),),
            may_be_empty=f"{_TRAINED}, or no site's policy allows to tell its loss",
        ),
        Panel(
            "Energy that the aggregation truncated",
            "The largest share of a weight's energy that was lost when updates of different ranks were made one adapter. Above "
            "some percent, higher ranks (planning.ranks) keep more of what the sites learned.",
            units.PercentUnit,
            (Query(f"max(fedpipe_run_truncated_energy_ratio{{{_RUN}}})", "largest share"),),
            thresholds=(Threshold(0.05, "orange"),),
            may_be_empty="no round has been aggregated",
        ),
    ),
)

_PLANS: Final = Row(
    "Plans and forecasts by site",
    (
        Panel(
            "Plan by site",
            "What the planner chose for each site: bits of the base model, the largest rank, trained layers and optimiser steps. "
            "status.plans of the run says why.",
            units.Short,
            (
                _by_site("fedpipe_plan_bits", "bits"),
                _by_site("fedpipe_plan_rank", "rank"),
                _by_site("fedpipe_plan_depth", "layers"),
                _by_site("fedpipe_plan_steps", "steps"),
            ),
            Kind.TABLE,
        ),
        Panel(
            "Peak memory: predicted and measured",
            "What the plan predicts for each site, and the peak of its last training.",
            units.BytesIEC,
            (
                _by_site("fedpipe_plan_memory_bytes", "{{site}}: predicted"),
                _by_site("fedpipe_task_peak_memory_bytes", "{{site}}: measured"),
            ),
        ),
        Panel(
            "Seconds: predicted and measured",
            "What the plan predicts for each site's task, and the seconds of its last training.",
            units.Seconds,
            (_by_site("fedpipe_plan_seconds", "{{site}}: predicted"), _by_site("fedpipe_task_seconds", "{{site}}: measured")),
        ),
        Panel(
            "Measured over predicted",
            "1 is a perfect forecast. Outside 0.75 to 1.25 the site is not what its profile said, or the forecast is wrong for it.",
            units.Short,
            (
                _ratio("fedpipe_task_peak_memory_bytes", "fedpipe_plan_memory_bytes", "{{site}}: memory"),
                _ratio("fedpipe_task_seconds", "fedpipe_plan_seconds", "{{site}}: seconds"),
            ),
            thresholds=_FORECAST,
            may_be_empty=_TRAINED,
        ),
        Panel(
            "Seconds of the last training by phase",
            "Where each site's time goes. Much loading or transfer is a matter of its network or cache, not of its GPU.",
            units.Seconds,
            (Query(f"max by (site, phase) (fedpipe_task_phase_seconds{{{_SITES}}})", "{{site}}: {{phase}}"),),
            Kind.BARS,
            may_be_empty=_TRAINED,
        ),
        Panel(
            "Rounds in a row that a site failed",
            "Rounds up to the last committed one in which the site was selected and gave no update. The run goes on without it; at three "
            "the alert FedPipeSiteFailing fires.",
            units.Short,
            (_by_site("fedpipe_site_failed_rounds"),),
            thresholds=(Threshold(3, "red"),),
        ),
    ),
)

_WORK: Final = Row(
    "Work of the sites",
    (
        Panel(
            "Tokens per second",
            "Of the steps of each site's last training.",
            units.Short,
            (_by_site("fedpipe_site_tokens_per_second"),),
            may_be_empty=_TRAINED,
        ),
        Panel(
            "Model FLOPs utilisation",
            "The share of the device's peak that the tokens of each site's last training used, without padding.",
            units.PercentUnit,
            (_by_site("fedpipe_site_mfu_ratio"),),
            may_be_empty="no site has finished a training yet, or the model is a mixture of experts",
        ),
        Panel(
            "Bytes between store and sites",
            "Adapters, base models and results, from the start of the run. Up is what the site sent.",
            units.BytesIEC,
            (
                Query(
                    f"sum by (site, direction) (fedpipe_site_transferred_bytes_total{{{_SITES}}})",
                    "{{site}}: {{direction}}",
                ),
            ),
        ),
        Panel(
            "Energy by site",
            "Of the site's training, as its processors or GPUs measure it.",
            units.Joule,
            (Query(f"sum by (site) (fedpipe_site_energy_joules_total{{{_SITES}}})", "{{site}}"),),
            may_be_empty="the sites' machines have no counter of energy that a pod may read",
        ),
        Panel(
            "Refused updates in the run's namespace",
            "Updates that were not aggregated, by reason. docs/reasons.md explains each; the events of the run name the sites.",
            units.Short,
            (Query(f"sum by (reason) (fedpipe_updates_refused_total{{{_NAMESPACE}}}) > 0", "{{reason}}"),),
            may_be_empty="no update was refused",
        ),
        Panel(
            "Failed attempts in the run's namespace",
            "Attempts at a task that failed since the operator started, by site, kind of work and reason.",
            units.Short,
            (
                Query(
                    f'sum by (site, task, reason) (fedpipe_attempts_total{{{_NAMESPACE}, site=~"$site", reason!="Completed"}})',
                    "failed attempts",
                ),
            ),
            Kind.TABLE,
            may_be_empty="no attempt has failed",
        ),
    ),
)

RUN: Final = Dashboard(
    "fedpipe-run",
    "FedPipe / Run",
    "One run: progress, quality, plans, forecasts beside measurements, and what its sites did. "
    "A run whose object was deleted is found by a time range in which it was there.",
    (
        RELEASE,
        Variable("namespace", "Namespace", f"label_values(fedpipe_run_rounds{{{OF_RELEASE}}}, namespace)", many=False),
        Variable("run", "Run", f"label_values(fedpipe_run_rounds{{{_NAMESPACE}}}, run)", many=False),
        Variable("site", "Site", f"label_values(fedpipe_plan_bits{{{_RUN}}}, site)"),
    ),
    (_PROGRESS, _QUALITY, _PLANS, _WORK),
)
