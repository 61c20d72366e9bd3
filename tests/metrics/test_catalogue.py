"""The catalogue and what is collected: every metric occurs with exactly its labels where everything has happened, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from scrapes import ListenedFleet, Scrape, a_site_body
from stand_in_cluster import KubeWorld
from stand_in_runs import a_run
from trainer_results import a_failure, good_trainer

from fedpipe_operator.cluster.objects import NamespacedName
from fedpipe_operator.errors import TransientError
from fedpipe_operator.handlers.fleet import Fleet, JobNumbers
from fedpipe_operator.handlers.workqueue import QueueLoad
from fedpipe_operator.metrics.catalogue import CATALOGUE, PREFIX, Type
from fedpipe_operator.metrics.listener import Listener
from fedpipe_operator.observer import timed
from fedpipe_trainer.contract import EnergySource, FailureReason, Measured, TrainResult, TrainTask

OTHERS = ("process_", "python_")
"""Prometheus' own collectors: of the process, the interpreter and its garbage collector."""
MEASURED = {"memoryBandwidth": 2 * 10**10, "bandwidthUp": 9 * 10**7, "bandwidthDown": 9 * 10**8}
"""By the profile of a site."""
PHASES = {"load": 3.0, "train": 60.0, "evaluate": 9.0, "transfer": 1.5}


def busy_trainer(task: Any, folder: Path) -> Any:
    """Measures everything that can be measured; runs out of memory once."""
    if isinstance(task, TrainTask) and (task.site, task.round, task.attempt) == ("site-a", 1, 0):
        return a_failure(TrainResult, task, FailureReason.OUT_OF_MEMORY, "at its limit")
    result = good_trainer(task, folder)
    measured = Measured(device="cpu", peak_memory_bytes=2**30, seconds=PHASES, uploaded_bytes=10, downloaded_bytes=20)
    changes: dict[str, Any] = {"measured": measured}
    if isinstance(task, TrainTask):
        changes |= {"tokens_per_second": 500.0, "mfu": 0.3, "energy_joules": 4000.0, "energy_source": EnergySource.RAPL}
        changes |= {"update_cosine": 0.98}
        changes |= {"losses": (1.25, 1.0), "tokens": 8000, "padded_tokens": 2000}
    return result.model_copy(update=changes)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page in the middle of the second round of a run, after calls that succeeded and failed."""
    listener = Listener(lambda: world.now)
    world = KubeWorld(tmp_path_factory.mktemp("world"), a_run(rounds={"count": 3, "deadline": "10m"}, sites={"quorum": 0.6}), busy_trainer)
    world.observer = listener
    world.restart()
    world.work_until("train-r3")
    world.reconcile()
    listener.kube_called("get", "OK", 0.25)
    with pytest.raises(TransientError), timed(lambda why, seconds: listener.store_called("list", why, seconds)):
        raise TransientError("StoreUnreachable", "nobody answers")
    listener.reconciled("run", "success", 0.5)
    listener.event_received("jobs")
    body = world.body()
    body["status"]["progress"] = {"stage": "Training", "percentage": 60}
    sites = tuple(a_site_body(site.name, capacity={"measured": MEASURED}) for site in world.run.sites)
    jobs = {NamespacedName("default", "site-a"): JobNumbers(pending=1, running=2)}
    ended = {"type": "Complete", "status": "True", "reason": "Finished", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    over = {"metadata": body["metadata"] | {"name": "over", "uid": "over"}, "status": {"conditions": [ended]}}
    shown = ListenedFleet(listener, Fleet((body, over), sites, jobs), {"run": QueueLoad(2, 1.5)})
    return generate_latest(shown.listener.registry).decode()


def collected(page: str) -> dict[str, tuple[str, set[frozenset[str]]]]:
    """Type and sets of labels by the metric's name, of ours."""
    found: dict[str, tuple[str, set[frozenset[str]]]] = {}
    for family in text_string_to_metric_families(page):
        if family.name.startswith(OTHERS):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        found[name] = family.type, labels
    return found


def test_every_metric_of_the_catalogue_is_collected_with_exactly_its_labels_and_type_and_nothing_else_is(page: str) -> None:
    wanted = {metric.name: (str(metric.type), {frozenset(metric.labels)}) for metric in CATALOGUE}

    assert collected(page) == wanted


def test_names_follow_prometheus_rules() -> None:
    """A prefix, base units, `_total` for counters and nothing else: https://prometheus.io/docs/practices/naming/."""
    names = [metric.name for metric in CATALOGUE]

    assert len(set(names)) == len(names)
    assert [name for name in names if not name.startswith(PREFIX)] == []
    assert [one.name for one in CATALOGUE if one.name.endswith("_total") != (one.type is Type.COUNTER)] == []
    units = ("milliseconds", "minutes", "kilobytes", "mib", "percent")
    assert [name for name in names if any(name.endswith(f"_{unit}") for unit in units)] == []


def test_every_metric_says_what_it_measures_in_a_sentence_of_its_own() -> None:
    texts = [metric.help for metric in CATALOGUE]

    assert len(set(texts)) == len(texts)
    assert [text for text in texts if not text.endswith(".") or not (text[0].isupper() or text[0].isdigit())] == []


def test_the_values_of_a_site_in_a_run_are_those_of_its_plan_and_its_last_training(page: str) -> None:
    scrape, of = Scrape.of(page), {"namespace": "default", "run": "toy", "site": "site-b"}

    assert scrape.value("plan_bits", **of) == 16
    assert scrape.value("plan_rank", **of) == 4
    assert scrape.value("plan_depth", **of) == 1
    assert scrape.value("task_seconds", **of) == sum(PHASES.values())
    assert {key: scrape.value("task_phase_seconds", **of, phase=key) for key in PHASES} == PHASES
    assert scrape.value("task_loss", **of) == 1.0
    assert scrape.value("site_mfu_ratio", **of) == 0.3
    assert scrape.value("site_update_cosine", **of) == 0.98
    assert scrape.value("site_tokens_per_second", **of) == 500
    assert scrape.value("site_padded_tokens_per_second", **of) == 625, "a fifth of what was computed is padding"
    assert scrape.value("site_tokens_per_joule", **of, source="RAPL") == 2
    assert scrape.value("site_granularity_ratio", **of) == PHASES["train"] / PHASES["transfer"]
    assert scrape.value("site_network_bits_per_second", **of) == 8 * 30 / PHASES["transfer"]
    assert scrape.value("site_memory_bandwidth_bytes_per_second", namespace="default", site="site-b") == 2e10
    assert scrape.value("site_bandwidth_bits_per_second", namespace="default", site="site-b", direction="up") == 9e7
    assert scrape.value("site_failed_rounds", **of) == 0
    assert scrape.value("run_round", namespace="default", run="toy") == 3
    assert scrape.value("run_rounds", namespace="default", run="toy") == 3
    assert scrape.value("run_progress_ratio", namespace="default", run="toy") == 0.6
    assert scrape.value("run_updates", namespace="default", run="toy", state="expected") == 2
    assert scrape.value("run_metric", namespace="default", run="toy", metric="accuracy") == pytest.approx(0.1)
    assert scrape.value("run_status_condition", namespace="default", run="toy", condition="Progressing", status="true") == 1
    assert scrape.value("run_stage_deadline_seconds", namespace="default", run="toy", stage="Training") == 600
    assert scrape.value("site_jobs", namespace="default", site="site-a", state="running") == 2
    assert scrape.value("kube_requests_total", verb="get", reason="OK") == 1
    assert scrape.value("store_requests_total", operation="list", reason="StoreUnreachable") == 1
    assert scrape.value("aggregation_duration_seconds_count", where="operator", method="Exact") == 2
