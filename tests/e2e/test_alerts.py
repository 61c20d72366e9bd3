"""promtool checks the alerts and runs their cases; Helm renders them. Needs no cluster."""

import re
from pathlib import Path
from typing import Final

import pytest
import yaml
from charts import API_SERVER, CHART, ROOT, Plain, helm, of_kind, rendered, set_values
from observability.dashboards import DASHBOARDS, as_json
from observability.fleet import FLEET
from prometheus import promtool

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

ALERTS: Final = CHART / "files" / "alerts.yaml"
CASES: Final = ROOT / "tests" / "chart" / "alerts.promtool.yaml"


def rule(given: Plain, namespace: str = "fedpipe") -> Plain:
    """The PrometheusRule that Helm renders for a cluster that has its kind."""
    options = set_values(API_SERVER | {"prometheusRule.enabled": True} | given)
    done = helm("template", "fedpipe", CHART, "--namespace", namespace, "--api-versions", "monitoring.coreos.com/v1", *options)
    assert done.returncode == 0, done.stderr
    (found,) = of_kind([one for one in yaml.safe_load_all(done.stdout) if one], "PrometheusRule")
    return found


def alerts_of(rule: Plain) -> dict[str, Plain]:
    return {one["alert"]: one for group in rule["spec"]["groups"] for one in group["rules"]}


def test_promtool_accepts_the_alerts() -> None:
    done = promtool("check", "rules", "--lint-fatal", ALERTS)

    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_is_silent_when_it_should_be() -> None:
    done = promtool("test", "rules", CASES)

    assert done.returncode == 0, done.stdout + done.stderr


def test_by_default_the_chart_installs_neither_alerts_nor_dashboards() -> None:
    assert of_kind(rendered(), "PrometheusRule") == of_kind(rendered(), "ConfigMap") == []


def test_the_rendered_alerts_are_those_of_the_file() -> None:
    found = rule({"prometheusRule.labels": {"release": "monitoring"}})

    assert found["spec"] == yaml.safe_load(ALERTS.read_text())
    assert found["metadata"]["labels"]["release"] == "monitoring"
    assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "fedpipe"


def test_a_cluster_without_the_prometheus_operator_is_reported_with_what_to_do() -> None:
    done = helm("template", "fedpipe", CHART, *set_values(API_SERVER | {"prometheusRule.enabled": True}))

    assert done.returncode != 0
    assert "prometheusRule.enabled is true, and the cluster has no monitoring.coreos.com/v1" in done.stderr
    assert "files/alerts.yaml" in done.stderr


def test_an_alert_may_wait_for_another_time_and_all_others_for_yet_another() -> None:
    found = rule({"prometheusRule.for": {"*": "1s", "FedPipeRunBlocked": "1h"}})

    waits = {name: alert["for"] for name, alert in alerts_of(found).items()}
    assert waits.pop("FedPipeRunBlocked") == "1h"
    assert set(waits.values()) == {"1s"}


def test_a_reconcile_counts_as_stuck_after_as_many_seconds_as_the_chart_s_user_says() -> None:
    stuck = alerts_of(rule({"prometheusRule.reconcileStuckSeconds": 900}))["FedPipeReconcileStuck"]

    assert stuck["expr"] == "max by (release, job, queue) (fedpipe_workqueue_oldest_seconds) > 900"


def test_alerts_lead_to_the_runbook_s_own_address() -> None:
    found = rule({"prometheusRule.runbook": "https://wiki.example/alerts.md"})

    links = {name: alert["annotations"]["runbook_url"] for name, alert in alerts_of(found).items()}
    assert links["FedPipeRunFailed"] == "https://wiki.example/alerts.md#fedpiperunfailed"
    assert all(link.startswith("https://wiki.example/alerts.md#") for link in links.values())


def test_the_sidecar_of_grafana_finds_each_dashboard_where_it_looks() -> None:
    given = {"enabled": True, "namespace": "monitoring", "annotations": {"grafana_folder": "FedPipe"}, "labels": {"grafana_dashboard": "2"}}
    found = of_kind(rendered({f"dashboards.{name}": value for name, value in given.items()}), "ConfigMap")

    assert {name: text for one in found for name, text in one["data"].items()} == {f"{one.uid}.json": as_json(one) for one in DASHBOARDS}
    assert {one["metadata"]["namespace"] for one in found} == {"monitoring"}
    assert {one["metadata"]["labels"]["grafana_dashboard"] for one in found} == {"2"}
    assert {one["metadata"]["annotations"]["grafana_folder"] for one in found} == {"FedPipe"}
    assert {"1"} == {one["metadata"]["labels"]["grafana_dashboard"] for one in of_kind(rendered({"dashboards.enabled": True}), "ConfigMap")}


def test_two_releases_have_dashboards_of_two_names_in_grafana_s_namespace() -> None:
    given = {"dashboards.enabled": True, "dashboards.namespace": "monitoring"}
    one, two = ({found["metadata"]["name"] for found in of_kind(rendered(given, namespace=name), "ConfigMap")} for name in ("one", "two"))

    assert len(one) == len(DASHBOARDS)
    assert one & two == set()


MONITORED: Final[list[Plain]] = [
    {"metrics.serviceMonitor.enabled": True, "networkPolicy.metricsFrom": [{"podSelector": {}}]},
    {"metrics.podMonitor.enabled": True, "networkPolicy.metricsFrom": [{"podSelector": {}}]},
]


@pytest.mark.parametrize("monitored", MONITORED, ids=["ServiceMonitor", "PodMonitor"])
def test_where_the_chart_gives_series_their_release_each_alert_is_about_that_alone(monitored: Plain) -> None:
    alerts = alerts_of(rule(monitored, namespace="wards"))

    for name, alert in alerts.items():
        selected = re.findall(r"fedpipe_[a-z_]+(.{0,25})", alert["expr"])
        assert selected, name
        assert all(found.startswith('{release="wards/fedpipe"') for found in selected), name
        assert alert["labels"]["release"] == "wards/fedpipe"
    assert alerts["FedPipeOperatorAbsent"]["expr"] == 'absent(fedpipe_leader{release="wards/fedpipe"} == 1)'
    assert alerts["FedPipeOperatorAbsent"]["annotations"]["summary"] == "No FedPipe operator of wards/fedpipe reconciles."


TWO_RELEASES: Final = """
rule_files: [wards.yaml, labs.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'fedpipe_leader{release="wards/fedpipe", job="fedpipe"}', values: "1x30"}
      - {series: 'fedpipe_leader{release="labs/fedpipe", job="fedpipe"}', values: "1x5"}
      - series: 'fedpipe_run_status_condition{release="wards/fedpipe", namespace="n", run="r", condition="Progressing", status="false"}'
        values: "1x30"
      - {series: 'fedpipe_updates_refused_total{release="wards/fedpipe", namespace="n", reason="WrongSteps"}', values: "0x18 1x12"}
    alert_rule_test:
      - eval_time: 20m
        alertname: FedPipeOperatorAbsent
        exp_alerts:
          - exp_labels: {severity: critical, release: labs/fedpipe}
            exp_annotations:
              summary: No FedPipe operator of labs/fedpipe reconciles.
              description: Prometheus sees no operator that reconciles. No Job is started and no round committed; running trainers go on.
              runbook_url: docs/alerts.md#fedpipeoperatorabsent
      - eval_time: 20m
        alertname: FedPipeRunBlocked
        exp_alerts:
          - exp_labels: {severity: warning, release: wards/fedpipe, namespace: n, run: r}
            exp_annotations:
              summary: The run n/r is blocked.
              description: The run makes no progress although it is neither suspended nor ended. Its condition Progressing says why.
              runbook_url: docs/alerts.md#fedpiperunblocked
      - eval_time: 20m
        alertname: FedPipeUpdatesRefused
        exp_alerts:
          - exp_labels: {severity: warning, release: wards/fedpipe, namespace: n, reason: WrongSteps}
            exp_annotations:
              summary: Updates were refused in n (WrongSteps).
              description: Updates of sites were refused within the last ten minutes because of WrongSteps, and not aggregated.
              runbook_url: docs/alerts.md#fedpipeupdatesrefused
"""


def test_two_releases_with_alerts_each_fire_once_and_tell_which_of_them_has_no_operator(tmp_path: Path) -> None:
    for namespace in ("wards", "labs"):
        (tmp_path / f"{namespace}.yaml").write_text(yaml.safe_dump(rule(MONITORED[0], namespace)["spec"]))
    (tmp_path / "two.yaml").write_text(TWO_RELEASES)

    done = promtool("test", "rules", tmp_path / "two.yaml")

    assert done.returncode == 0, done.stdout + done.stderr
    assert promtool("check", "rules", "--lint-fatal", tmp_path / "wards.yaml").returncode == 0


DCGM: Final = """
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'DCGM_FI_DEV_GPU_UTIL{pod="dcgm-4x", exported_namespace="wards", exported_pod="%(pod)s", gpu="0"}', values: "70 80"}
      - {series: 'DCGM_FI_DEV_GPU_UTIL{pod="dcgm-4x", exported_namespace="wards", exported_pod="notebook-0", gpu="1"}', values: "99 99"}
      - {series: 'DCGM_FI_DEV_GPU_UTIL{namespace="wards", pod="%(cut)s", gpu="2"}', values: "50 60"}
      - {series: 'DCGM_FI_DEV_GPU_UTIL{namespace="other", pod="%(pod)s", gpu="3"}', values: "1 1"}
    promql_expr_test:
      - {eval_time: 1m, expr: '%(renamed)s', exp_samples: [{labels: '{exported_pod="%(pod)s"}', value: 80}]}
      - {eval_time: 1m, expr: '%(honoured)s', exp_samples: [{labels: '{pod="%(cut)s"}', value: 60}]}
"""


def test_the_use_of_a_gpu_is_that_of_the_trainers_pods_in_the_chosen_namespaces(tmp_path: Path) -> None:
    panel = next(panel for panel in FLEET.panels() if panel.title == "GPU use by trainer pod")
    renamed, honoured = (query.expr.replace("$namespace", "wards") for query in panel.queries)
    pods = {"pod": "triage-train-r1-ward-a0-0123456789abcdef-x7k2p", "cut": f"{'r' * 30}-evaluate-r12-a-0123456789abc-x7k2p"}
    file = tmp_path / "dcgm.yaml"
    file.write_text(DCGM % (pods | {"renamed": renamed, "honoured": honoured}))

    done = promtool("test", "rules", file)

    assert done.returncode == 0, done.stdout + done.stderr
