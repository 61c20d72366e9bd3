"""The alerts, their runbook and their cases for promtool agree. `tests/e2e/test_alerts.py` runs promtool."""

import re
from typing import Any, Final

import pytest
import yaml
from charts import CHART, ROOT, Plain

from fedpipe_operator.metrics.catalogue import CATALOGUE

RULES: Final = [rule for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
CASES: Plain = yaml.safe_load((ROOT / "tests" / "chart" / "alerts.promtool.yaml").read_text())
RUNBOOK: Final = (ROOT / "docs" / "alerts.md").read_text()
DEFINED: Final = {
    "FedPipeOperatorAbsent": ("critical", "5m"),
    "FedPipeReconcileStuck": ("critical", "5m"),
    "FedPipeStoreErrors": ("critical", "10m"),
    "FedPipeRunBlocked": ("warning", "10m"),
    "FedPipeStageNearDeadline": ("warning", "1m"),
    "FedPipeQuorumAtRisk": ("warning", "2m"),
    "FedPipeRunFailed": ("warning", None),
    "FedPipeUpdatesRefused": ("warning", None),
    "FedPipeSiteFailing": ("warning", None),
    "FedPipeForecastOff": ("info", None),
}


def sections() -> dict[str, str]:
    """The runbook's sections of alerts, by title."""
    return dict(re.findall(r"^## (FedPipe\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))


def test_each_alert_has_its_severity_and_the_time_that_it_waits() -> None:
    assert {rule["alert"]: (rule["labels"]["severity"], rule.get("for")) for rule in RULES} == DEFINED


def test_the_runbook_has_a_section_for_every_alert_and_for_no_other() -> None:
    assert sections().keys() == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_leads_to_its_section_which_says_what_to_do(rule: Any) -> None:
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"
    for part in ("**Means.**", "**Look.**", "**Do.**"):
        assert part in sections()[rule["alert"]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_reads_metrics_of_the_catalogue_alone(rule: Any) -> None:
    assert set(re.findall(r"fedpipe_\w+", rule["expr"])) <= {metric.name for metric in CATALOGUE}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent(rule: Any) -> None:
    tried = [case for test in CASES["tests"] for case in test["alert_rule_test"] if case["alertname"] == rule["alert"]]

    assert any(case.get("exp_alerts") for case in tried)
    assert any(not case.get("exp_alerts") for case in tried)


def test_the_runbook_s_table_has_each_alert_with_its_severity_and_its_time() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \| (\w+) \| ([^|]*) \|", RUNBOOK, re.MULTILINE)

    assert {name: (severity, None if waits == "at once" else waits) for name, _, severity, waits in rows} == DEFINED
    assert all(anchor == name.lower() for name, anchor, _, _ in rows)
