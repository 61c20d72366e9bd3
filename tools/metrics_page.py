"""Writes docs/metrics.md from the catalogue: `python tools/metrics_page.py`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedpipe_operator.metrics.catalogue import OPERATOR, RUNS, SITES, SITES_OF_RUNS, Metric
from fedpipe_operator.metrics.counter_series import MOST_REASONS
from fedpipe_operator.metrics.run_record import LINGER_SECONDS
from fedpipe_operator.metrics.site_of_run_series import MOST_PAIRS, MOST_SITES

PAGE: Final = Path(__file__).parents[1] / "docs" / "metrics.md"
_INTRODUCTION: Final = f"""# Metrics

<!-- Made by tools/metrics_page.py from operator/fedpipe_operator/metrics/catalogue.py: change the catalogue, and run it. -->

The operator serves its metrics in Prometheus' text format at `/metrics`, on a port of their own (`metricsPort`, 9090). Whose pods may
connect says [`networkPolicy.metricsFrom`](network-policies.md). The series of runs and sites are made at
each scrape from what the operator holds, so a series goes with its object. There is no push gateway: what trainers measured arrives
in their results.

* **Counters** begin at 0 when the operator starts and count what happens from then on, each thing once; what happened to a run before
  is not counted again, so that `rate` and `increase` are right over restarts. What ends in the seconds in which no operator runs is
  not counted. A counter whose labels have known values begins with 0. `fedpipe_attempts_total` does not: the first attempt that fails
  for a new reason is a series that begins with 1, which `increase` does not see; ask for the value itself.
* **Sites of runs**: a run shows {MOST_SITES} of its sites at most, all runs together {MOST_PAIRS} pairs, which they share evenly:
  first the sites that failed, then those that are planned to take longest. They are shown until {LINGER_SECONDS / 60:.0f} minutes
  after the run's end.
* **Reasons** of attempts are those of [reasons.md](reasons.md) and Kubernetes' own words; beyond {MOST_REASONS} of a namespace, and
  what is no such word, is `Other`.
* **What a site keeps to itself** is in no metric: no label or column of its data, no loss of a single step. The mean loss of a
  training is what every `policy.trainingLosses` allows to be told. What a site calls a phase is shown only if it is one of ours.
* **Who may scrape** reads the names of runs and sites, plans, and figures of each site's last training, its mean loss among them: there
  is no other access control than the network policy, so let Prometheus alone connect.
* **Whose objects**: the runs and sites of the operator's class (`operatorClass`), without the runs whose `spec.managedBy` names another
  controller.
* Labels hold names of objects, which the API server holds to DNS names, and words of the operator.
* **Which release**: the scrape gives each target the label `release`, NAMESPACE/NAME, as the chart's monitors and
  [the example](../examples/kubernetes/monitoring/prometheus.yaml) do. [Alerts](alerts.md) and [dashboards](dashboards.md) keep releases
  apart by it, and work without it where one release is scraped. A run or a site is of one release, whatever its namespace.
* Where Prometheus has labels `namespace` of its own (a ServiceMonitor), set `honorLabels: true`: else ours is called
  `exported_namespace`.

Of two replicas, the one that reconciles shows runs and sites, and has `fedpipe_leader` 1.

Where only kube-state-metrics is scraped,
[`kube-state-metrics.yaml`](../examples/kubernetes/monitoring/kube-state-metrics.yaml) has it show the objects' state: conditions,
stage, round, percentage, updates and the primary figure of runs, and the conditions of sites, as `kube_fedpipe_…`. It sees what
`kubectl get -o yaml` shows, the objects of every operator among them, and no more: no counter, nothing of a site of a run, nothing of
the operator itself. The alerts and dashboards need the operator's own metrics. kube-state-metrics develops this feature
(CustomResourceState) no further.

A page is made at most once a second, whoever asks. If the operator's event loop does not answer in five seconds, the page lacks runs
and sites, and `fedpipe_workqueue_oldest_seconds` goes on growing. Prometheus' own series of the process and its interpreter are
beside these: `process_…`, `python_…`.
"""


def page() -> str:
    """The whole page."""
    parts = (
        ("The operator", OPERATOR),
        ("Runs", RUNS),
        ("Sites, attempts, refusals", SITES),
        ("Sites of runs", SITES_OF_RUNS),
    )
    return "\n".join((_INTRODUCTION, *(_section(title, metrics) for title, metrics in parts)))


def _section(title: str, metrics: Sequence[Metric]) -> str:
    lines = (f"| `{one.name}` | {one.type} | {', '.join(f'`{label}`' for label in one.labels) or '–'} | {one.help} |" for one in metrics)
    return "\n".join((f"## {title}", "", "| metric | type | labels | what it is |", "|---|---|---|---|", *lines, ""))


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE} is written\n")


if __name__ == "__main__":
    main()
