"""A real Prometheus scrapes the operator while runs succeed, are refused, fail and are blocked: each panel has data, each alert fires.

A site of the first run boasts, so that its updates are refused in three rounds in a row, and another is late once. In the second run, a
trainer hangs until the deadline, so that the quorum is out of reach. Others have a site whose Jobs the API server refuses, a key pair
that the store does not know, or a store that answers one byte a second. Then the operator is away. With FEDPIPE_RECORD_PANELS=1, what
Prometheus answers to the panels is stored for the pictures of docs/dashboards.md.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from charts import API_SERVER, CHART, helm, set_values
from cluster_user import wait_until
from fleet_namespace import SECRET, SHORT, FleetNamespace, OpenNamespace, store_endpoint
from installed_operator import Operator
from observability import pictures
from observability.answers import Source, ask
from observability.dashboards import DASHBOARDS
from observability.drawing import Answers
from prometheus import prometheus_of_the_operator, wait_for_a_scrape
from tarpit import start_tarpit, store_in_tarpit
from testcluster import outages
from testcluster.layout import default_layout, node_named
from testcluster.substitution import substituted

pytestmark = [pytest.mark.e2e, pytest.mark.nightly, pytest.mark.exclusive]

TRAINER: Final = Path(__file__).parents[1] / "helpers" / "boastful_trainer"
HONEST: Final = ("north", "south")
ONE_NODE: Final = {"fedpipe.io/pool": "small"}
"""Of the honest sites. The boastful one has the other node for itself."""
ROUNDS: Final = 3
DENIED: Final = 20
"""Runs with a wrong key pair: each retries after 1, 2, 4 … seconds, and together they are more than a twentieth of all calls, those of the
other runs in the last five minutes included."""
WAITS: Final = {"*": "1s", "FedPipeOperatorAbsent": "20s"}
"""Instead of minutes. Prometheus needs some seconds to find the operator in the first place."""
NO_DATA: Final = {
    "GPU use by trainer pod": "the test cluster has no GPU",
    "GPU memory by trainer pod": "the test cluster has no GPU",
    "Energy by site": "a pod reads no counter of energy on these machines",
    "Plans that were changed": "all plans are given, and no trainer ran out of memory",
}
"""The panels that have no data here, and why."""
STUCK: Final = "FedPipeReconcileStuck"
STUCK_SECONDS: Final = 10
"""Instead of 300. A call of a store that answers one byte a second holds a reconcile up for 30 seconds, honest reconciles take one."""


@dataclass(frozen=True)
class Watched:
    """What Prometheus said."""

    answers: Mapping[str, Mapping[str, Answers]]
    """By dashboard and panel."""
    during_the_first_run: set[str]
    """The alerts that fired until it was complete."""
    fired: set[str]
    unhealthy: list[str]
    """Rules that Prometheus could not evaluate."""
    fires_on: set[str]
    """The alerts that still fired when what had held a reconcile up was gone."""


@pytest.fixture(scope="module")
def watched(open_namespace: OpenNamespace, operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Everything that happens, watched by Prometheus."""
    folder = tmp_path_factory.mktemp("prometheus")
    rules = alerts_that_fire_at_once(folder)
    with (
        prometheus_of_the_operator(folder, operator.kubectl, rules) as url,
        substituted(default_layout(), node_named("node-two"), os.environ["FEDPIPE_TRAINER_IMAGE"], TRAINER),
        open_namespace("e2e-prometheus") as namespace,
    ):
        began = time.monotonic()  # the time range of the panels begins here
        first = complete_a_run_whose_boastful_site_is_refused(namespace, url)
        of_run = answers_of("fedpipe-run", Source(url, choices(namespace, first), time.monotonic() - began))
        during_the_first_run = fired(url)
        fail_a_run_whose_quorum_is_out_of_reach(namespace)
        ask_for_a_job_that_the_api_server_refuses(namespace, url)
        deny_runs_their_store(namespace, url)
        hold_a_reconcile_up(namespace, url)
        fires_on = firing(url)
        whole = Source(url, choices(namespace, first), time.monotonic() - began)
        others = {uid: answers_of(uid, whole) for uid in ("fedpipe-fleet", "fedpipe-operator")}
        stop_the_operator(operator, url)
        unhealthy = [rule["name"] for group in rules_of(url) for rule in group["rules"] if rule["health"] != "ok"]
        yield Watched({"fedpipe-run": of_run} | others, during_the_first_run, fired(url), unhealthy, fires_on)


def alerts_that_fire_at_once(folder: Path) -> Path:
    """The rules as the chart renders them, with shorter times."""
    given = API_SERVER | {
        "prometheusRule.enabled": True,
        "prometheusRule.for": WAITS,
        "prometheusRule.reconcileStuckSeconds": STUCK_SECONDS,
    }
    done = helm("template", "fedpipe", CHART, "--api-versions", "monitoring.coreos.com/v1", *set_values(given))
    assert done.returncode == 0, done.stderr
    rule = next(one for one in yaml.safe_load_all(done.stdout) if one and one["kind"] == "PrometheusRule")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    return folder / "rules.yaml"


def choices(namespace: FleetNamespace, run: str) -> dict[str, str]:
    return {"release": ".*", "namespace": namespace.name, "run": run, "site": ".*", "job": ".*", "__rate_interval": "30s"}


def answers_of(uid: str, source: Source) -> dict[str, Answers]:
    """What the dashboard's panels show, just after a scrape that succeeded."""
    wait_for_a_scrape(source.url)
    return pictures.answers_of(uid, source)


def complete_a_run_whose_boastful_site_is_refused(namespace: FleetNamespace, url: str) -> str:
    """In the first round, an honest site takes more than twice the time that was forecast."""
    namespace.kubectl.apply(
        *(namespace.site(one, nodeSelector=ONE_NODE) for one in HONEST),
        namespace.site("west"),
        namespace.run(sites={"quorum": 0.6}, rounds={"count": ROUNDS, "attempts": 1}, export=SHORT["export"]),
    )
    pod = namespace.wait_for_trainer("toy-train-r1-north-a0")["metadata"]
    namespace.wait("it loads", lambda: '"phase":"load"' in namespace.kubectl("logs", pod["name"]))
    late = 'time() - max(fedpipe_run_stage_started_timestamp_seconds{stage="Training"}) > 2 * max(fedpipe_plan_seconds)'
    with outages.paused(pod["uid"]):
        wait_until(lambda: ask(url, "query", query=late), "the site is late", seconds=120)
    run = namespace.wait_until_complete()
    assert [entry["updates"] for entry in run["status"]["history"]] == ["2/3"] * ROUNDS
    return "toy"


def fail_a_run_whose_quorum_is_out_of_reach(namespace: FleetNamespace) -> None:
    """The trainer of an honest site hangs until the deadline; the boastful site is refused."""
    namespace.kubectl.apply(
        namespace.run("late", sites={"quorum": 0.6}, rounds={"count": 1, "attempts": 1, "deadline": "75s"}, export=SHORT["export"])
    )
    pod = namespace.wait_for_trainer("late-train-r1-south-a0")
    with outages.paused(pod["metadata"]["uid"]):
        namespace.wait("the run failed", lambda: is_failed(namespace, "late"), seconds=300)


def is_failed(namespace: FleetNamespace, name: str) -> bool:
    conditions = namespace.get_run(name).get("status", {}).get("conditions", ())
    return any((one["type"], one["status"]) == ("Failed", "True") for one in conditions)


def ask_for_a_job_that_the_api_server_refuses(namespace: FleetNamespace, url: str) -> None:
    namespace.kubectl.apply(namespace.site("odd", "west", podTemplate={"labels": {"not a key": "x"}}), namespace.run("odd"))
    wait_until(lambda: ask(url, "query", query='fedpipe_kube_requests_total{reason!="OK"}'), "a call fails", seconds=60)
    namespace.kubectl("delete", "fft", "odd")
    namespace.kubectl("delete", "edgesite", "odd")


def deny_runs_their_store(namespace: FleetNamespace, url: str) -> None:
    wrong = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing at all"}
    store = {"bucket": "fedpipe", "prefix": "runs", "endpoint": store_endpoint(), "credentialsSecretRef": {"name": f"{SECRET}-wrong"}}
    namespace.kubectl.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{SECRET}-wrong"}, "stringData": wrong},
        *(namespace.run(f"denied-{number}", store=store) for number in range(DENIED)),
    )
    both = {"FedPipeRunBlocked", "FedPipeStoreErrors"}
    wait_until(lambda: both <= fired(url), f"{both} fire", seconds=180, explain=lambda: f"{fired(url)}\n{namespace.explain()}")
    namespace.kubectl("delete", "fft", *(f"denied-{number}" for number in range(DENIED)))


def hold_a_reconcile_up(namespace: FleetNamespace, url: str) -> None:
    """Until the alert fires; then the run is deleted, and the alert ends."""
    start_tarpit(namespace)
    namespace.kubectl.apply(namespace.run("stuck", store=store_in_tarpit(namespace)))
    wait_until(lambda: STUCK in firing(url), f"{STUCK} fires", seconds=120, explain=namespace.explain)
    namespace.kubectl("delete", "fft", "stuck")
    wait_until(lambda: STUCK not in firing(url), f"{STUCK} ends", seconds=120, explain=namespace.explain)


def stop_the_operator(operator: Operator, url: str) -> None:
    operator.scale(0)
    try:
        wait_until(lambda: "FedPipeOperatorAbsent" in fired(url), "the operator's absence is told", seconds=90)
    finally:
        operator.scale(1)


def firing(url: str) -> set[str]:
    """The alerts that fire now."""
    return {one["metric"]["alertname"] for one in ask(url, "query", query='ALERTS{alertstate="firing"}')}


def fired(url: str) -> set[str]:
    """The alerts that have fired since Prometheus started."""
    found = ask(url, "query", query='last_over_time(ALERTS{alertstate="firing"}[1h])')
    return {one["metric"]["alertname"] for one in found}


def rules_of(url: str) -> list[dict[str, Any]]:
    return ask(url, "rules")


PANELS: Final = [pytest.param(one.uid, panel, id=f"{one.uid}: {panel.title}") for one in DASHBOARDS for panel in one.panels()]


@pytest.mark.parametrize(("uid", "panel"), PANELS)
def test_a_panel_has_data_of_a_real_run_unless_there_can_be_none(watched: Watched, uid: str, panel: Any) -> None:
    answers = watched.answers[uid][panel.title]

    if panel.title in NO_DATA:
        assert panel.may_be_empty
        assert not any(answers), f"{panel.title} has data: {NO_DATA[panel.title]} is no longer true"
    else:
        assert all(answers), f"a query of {panel.title} found nothing"


def test_every_alert_fired(watched: Watched) -> None:
    names = {rule["alert"] for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]}

    assert watched.fired == names


def test_the_alert_of_a_stuck_reconcile_ends_with_its_cause(watched: Watched) -> None:
    assert STUCK in watched.fired
    assert STUCK not in watched.fires_on


def test_no_alert_of_a_fault_fired_while_a_run_succeeded_without_one_site(watched: Watched) -> None:
    assert {"FedPipeUpdatesRefused", "FedPipeSiteFailing"} <= watched.during_the_first_run
    assert watched.during_the_first_run <= {"FedPipeUpdatesRefused", "FedPipeSiteFailing", "FedPipeQuorumAtRisk", "FedPipeForecastOff"}


def test_prometheus_can_evaluate_every_alert(watched: Watched) -> None:
    assert watched.unhealthy == []


def test_what_prometheus_answered_can_be_stored_for_the_pictures(watched: Watched, tmp_path: Path) -> None:
    file = pictures.ANSWERS if os.environ.get("FEDPIPE_RECORD_PANELS") else tmp_path / "answers.json"

    pictures.store(watched.answers, file)

    assert {path.name for path in pictures.pictures(file)} == {f"{one.uid}.svg" for one in DASHBOARDS}
