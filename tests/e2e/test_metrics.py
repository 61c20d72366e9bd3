"""The metrics of the running operator: those of a run while and after it trains, and none of what was deleted."""

from typing import Final

import pytest
from cluster_user import FFT, SITE
from fleet_namespace import SHORT, FleetNamespace
from installed_operator import Operator
from local_runs import MANUAL
from scrapes import Scrape

pytestmark = pytest.mark.e2e

_READ: Final = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/metrics', timeout=20).read().decode())"
"""In the operator's own container: which pods may connect from outside is for the network policies' tests."""


def scrape_of(operator: Operator) -> Scrape:
    """What the replica that reconciles shows."""
    pods = [pod["metadata"]["name"] for pod in operator.pods()]
    found = [Scrape.of(operator.kubectl("exec", pod, "--", "python", "-c", _READ)) for pod in pods]
    return next(one for one in found if one.value("leader") == 1)


LONG: Final = SHORT | {
    "planning": MANUAL | {"plans": [{"bits": 32, "rank": 4, "steps": 4000}]},
    "training": {"learningRate": 1e-5},
}
"""Many seconds of training, so that a scrape meets it on a busy machine too: each scrape starts a process in the operator's container."""
BUSY: Final = {"north": 1, "south": 1}


def _shows_training(scrape: Scrape, of: dict[str, str]) -> bool:
    """Whether the scrape shows the training's stage, the sites' plans and a Job of each."""
    stage = scrape.has("run_stage_started_timestamp_seconds", **of, stage="Training")
    return stage and scrape.has("plan_bits", **of) and scrape.by("site", "site_jobs", namespace=of["namespace"]) == BUSY


def test_a_run_is_seen_while_it_trains_and_until_it_is_deleted(namespace: FleetNamespace) -> None:
    operator, of = namespace.operator, {"namespace": namespace.name, "run": "toy"}
    namespace.start("north", "south", **LONG)
    namespace.wait_for_reason("Training", round_=1)
    during = namespace.wait(
        "the training is shown, its plan and both Jobs",
        lambda: scrape if _shows_training(scrape := scrape_of(operator), of) else None,
        seconds=60,
    )
    run = namespace.wait_until_complete()
    after = scrape_of(operator)
    namespace.kubectl("delete", FFT, "toy")
    namespace.wait("the run is not shown", lambda: not scrape_of(operator).has("run_round", **of), seconds=60)
    without = scrape_of(operator)
    namespace.kubectl("delete", SITE, "--all")
    gone = namespace.wait(
        "nothing of the namespace is shown", lambda: scrape if not _of(scrape := scrape_of(operator), namespace.name) else None, seconds=60
    )

    assert during.value("run_status_condition", **of, condition="Progressing", status="true") == 1
    assert during.value("run_status_condition", **of, condition="Complete", status="false") == 1
    assert (during.value("run_round", **of), during.value("run_rounds", **of)) == (1, 1)
    assert during.value("run_updates", **of, state="expected") == 2
    plans = {one["site"]: one for one in run["status"]["plans"]}
    for site in ("north", "south"):
        assert during.value("plan_bits", **of, site=site) == plans[site]["bits"]
        assert during.value("plan_rank", **of, site=site) == plans[site]["rank"]
        assert during.value("plan_steps", **of, site=site) == plans[site]["steps"]
        assert during.value("plan_memory_bytes", **of, site=site) == plans[site]["memory"]

    assert after.value("run_status_condition", **of, condition="Complete", status="true") == 1
    tasks = {"profile": 2, "train": 2, "evaluate": 2, "aggregate": 1}
    assert after.by("task", "attempts_total", namespace=namespace.name, reason="Completed") == tasks
    assert after.by("reason", "runs_finished_total", namespace=namespace.name) == {"RoundsCompleted": 1}
    assert after.value("run_metric", **of, metric=run["status"]["metric"]["name"]) == pytest.approx(
        run["status"]["metric"]["value"], abs=1e-4
    )
    for site in ("north", "south"):
        assert after.value("task_peak_memory_bytes", **of, site=site) > 2**20
        assert after.value("task_seconds", **of, site=site) > 0
        assert after.value("site_transferred_bytes_total", **of, site=site, direction="up") > 0
    assert after.value("kube_requests_total", verb="create", reason="OK") > 10
    assert after.value("store_requests_total", operation="list", reason="OK") > 0
    assert after.value("reconcile_total", kind="run", result="success") > 5
    assert after.value("aggregation_duration_seconds_count", where="operator", method="Exact") >= 1

    assert not without.named("plan_bits", **of)
    assert without.by("task", "attempts_total", namespace=namespace.name) == tasks, "the sites are there"
    assert not gone.has("site_status_condition", namespace=namespace.name)


def _of(scrape: Scrape, namespace: str) -> bool:
    """Whether there is a series of this namespace."""
    return any(("namespace", namespace) in labels for _, labels in scrape.values)
