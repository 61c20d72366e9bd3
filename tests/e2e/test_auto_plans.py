"""A run in mode Auto over sites that differ: its plans and their reasons, its Jobs, and the base model that a site keeps on its cache."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from cluster_user import Kubectl, Plain
from fleet_namespace import BUCKET, FleetNamespace, store_at
from installed_operator import Operator
from job_history import all_jobs_finished, created_jobs, duplicate_jobs, name_in_run

from fedpipe_operator import names
from fedpipe_operator.api import PlanStatus
from fedpipe_operator.cli.local_run import load_run
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.planning import plan_status
from fedpipe_operator.pod_settings import USER
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.store import DirectoryStore, S3Store
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import Plan, ProfileResult, RunRef, TrainResult

pytestmark = pytest.mark.e2e

CAPACITIES: Final = {
    "north": {"cpu": 1, "memory": "1472Mi"},
    "south": {"cpu": 1, "memory": "2Gi", "bandwidth": {"up": "100"}},
    "west": {"cpu": 1, "memory": "2Gi"},
}
"""North's memory has room for the activations of one of the two layers. South's uplink would need six minutes for the smallest update: so
whatever seconds are measured, the round is long, and the other sites have time for all they want. West has few samples."""
CACHES: Final = ("north", "south")
"""Sites with a cache volume."""
MODEL: Final = "models/e2e-auto-plans"
SPEC: Final = {
    "model": {"source": f"s3://{BUCKET}/{MODEL}"},
    "task": {"type": "SequenceClassification", "maxLength": 512},
    "rounds": {"count": 2, "deadline": "1h"},
    "planning": {"bits": [32], "batchSizes": [16]},
    "export": {"merged": False},
}
SHARED_FOLDER: Final = 0o2770
"""Writable by its group, which the files in it inherit: what the kubelet makes of a volume for the pod's `fsGroup`."""


@dataclass(frozen=True)
class AutoRun:
    """The completed run and what it left."""

    namespace: FleetNamespace
    manifests: list[Plain]
    """Of the sites and the run."""
    plans: Mapping[str, Plain]
    """The status's plans of round 1, by site."""
    store: S3Store
    caches: Path
    """The folder of the cache volumes."""

    def update(self, round_: int, site: str) -> TrainResult:
        """What a site's training reported."""
        return required_object(self.store, names.update_result(round_, site, 0), TrainResult)

    def downloaded(self, site: str) -> list[int]:
        """Bytes that each of a site's Jobs downloaded: the profile's, then those of the trainings."""
        profile = required_object(self.store, names.profile_result(site, 0), ProfileResult)
        return [one.measured.downloaded_bytes for one in (profile, self.update(1, site), self.update(2, site))]


@pytest.fixture(scope="module")
def model_bytes(disposable_cluster: None, uneven_fleet: Path) -> Iterator[int]:
    """The size of the base model, which is in the bucket."""
    del disposable_cluster
    store, files = store_at(MODEL), sorted((uneven_fleet / "volumes/models/toy").iterdir())
    for file in files:
        store.write_file(file.name, file)
    yield sum(file.stat().st_size for file in files)
    store.delete("")


@pytest.fixture(scope="module")
def auto(model_bytes: int, operator: Operator, uneven_fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AutoRun]:
    """The run, complete."""
    del model_bytes
    caches = tmp_path_factory.mktemp("caches")
    with FleetNamespace(Kubectl("e2e-auto-plans"), operator, uneven_fleet).opened() as namespace:
        for site in CACHES:
            make_cache_volume(namespace, caches / f"{site}-cache")
        manifests = [*(a_site(namespace, site) for site in CAPACITIES), namespace.run(**SPEC)]
        namespace.kubectl.apply(*manifests)
        plans = {plan["site"]: plan for plan in namespace.wait_for_reason("Training", round_=1)["status"]["plans"]}
        store = namespace.store_of(namespace.wait_until_complete())
        namespace.wait("every Job has finished", lambda: all_jobs_finished(namespace.kubectl))
        yield AutoRun(namespace, manifests, plans, store, caches)


def make_cache_volume(namespace: FleetNamespace, folder: Path) -> None:
    """Create a volume in this folder, and its claim."""
    folder.mkdir()
    os.chown(folder, 0, USER)
    folder.chmod(SHARED_FOLDER)
    namespace.kubectl.apply(namespace.volume(folder), namespace.claim(folder, "ReadWriteMany"))


def a_site(namespace: FleetNamespace, name: str) -> Plain:
    cache: dict[str, Any] = {"cache": {"persistentVolumeClaim": {"claimName": f"{name}-cache"}}} if name in CACHES else {}
    return namespace.site(name, capacity=CAPACITIES[name], **cache)


def plan_of(auto: AutoRun, round_: int) -> RoundPlan:
    return required_object(auto.store, names.round_plan(round_), RoundPlan)


def test_each_site_s_plan_names_the_constraint_that_makes_it_different(auto: AutoRun) -> None:
    north, south, west = (auto.plans[site] for site in ("north", "south", "west"))

    assert {site: plan["limitedBy"] for site, plan in auto.plans.items()} == {"north": "Memory", "south": "Bandwidth", "west": "Data"}
    assert [plan["layers"] for plan in (north, west)] == [1, 2]
    assert north["why"][0].startswith("limited by memory: 368 MiB more memory would buy 2 instead of 1 trained layers")
    assert south["upload"] < north["upload"] < west["upload"]
    assert south["why"][0].startswith("limited by bandwidth: 25 bit/s more upload bandwidth would buy ")
    assert (north["steps"], west["steps"]) == (9, 3)
    assert west["why"][0] == "limited by its data: a round makes 3 passes over its 16 samples; more of the same would teach it little"


def test_the_status_shows_the_plans_that_the_store_keeps(auto: AutoRun) -> None:
    first = plan_of(auto, 1)
    stored = {site: plan_status(site, plan, first.rank_lines[site]) for site, plan in first.plans.items()}

    assert {site: PlanStatus.model_validate(plan) for site, plan in auto.plans.items()} == stored


def test_the_sites_trained_by_their_plans(auto: AutoRun) -> None:
    for round_ in (1, 2):
        planned = {site: done_by(plan) for site, plan in plan_of(auto, round_).plans.items()}
        assert {site: trained_by(auto.update(round_, site)) for site in CAPACITIES} == planned


def done_by(plan: Plan) -> tuple[int, int, dict[str, int]]:
    """Steps, micro-batch and ranks."""
    return plan.steps, plan.micro_batch, {weight: rank for weight, rank in plan.ranks.items() if rank}


def trained_by(update: TrainResult) -> tuple[int, int, dict[str, int]]:
    return update.steps, update.micro_batch_size, update.ranks


def test_equal_profiles_give_equal_plans_on_one_machine(auto: AutoRun, tmp_path: Path) -> None:
    """`fedpipe plan` finds the cluster's profiles in its store, as if they were its own, and measures nothing."""
    (tmp_path / "run.yaml").write_text(yaml.safe_dump_all(auto.manifests))
    resource, _ = load_run([tmp_path / "run.yaml"])
    folder = tmp_path / "runs" / "default" / "toy"
    folder.mkdir(parents=True)
    meta = RunFolder(tmp_path / "runs", resource).resume().metadata
    here = DirectoryStore(folder / "store")
    for site in CAPACITIES:
        key = names.profile_result(site, 0)
        of_this_run = {"run": RunRef(namespace=meta.namespace, name=meta.name, uid=meta.uid)}
        here.write(key, required_object(auto.store, key, ProfileResult).model_copy(update=of_this_run).to_json().encode())

    command = [sys.executable, "-m", "fedpipe_operator.cli", "plan", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert list((folder / "jobs").iterdir()) == []
    assert timeless(required_object(here, names.round_plan(1), RoundPlan)) == timeless(plan_of(auto, 1))


def timeless(plan: RoundPlan) -> str:
    """The plan's JSON, but for the time at which it was made, and whose profiles it was made from."""
    return plan.model_copy(update={"started_at": 0.0, "profile_hashes": {}}).to_json()


def test_a_healthy_run_has_one_training_job_a_site_and_round(auto: AutoRun) -> None:
    once = {f"toy-{kind}-{site}-a0" for kind in ("profile", "train-r1", "train-r2", "evaluate-r2") for site in CAPACITIES}

    assert set(map(name_in_run, created_jobs(auto.namespace.kubectl))) == once | {"toy-dry-export-r1-a0", "toy-export-a0"}
    assert duplicate_jobs(auto.namespace.kubectl) == []


def test_a_site_with_a_cache_downloads_the_base_model_once(auto: AutoRun, model_bytes: int) -> None:
    adapter = auto.update(2, "west").measured.downloaded_bytes - model_bytes

    assert adapter > 0
    assert auto.downloaded("west")[1:] == [model_bytes, model_bytes + adapter]
    for site in CACHES:
        assert auto.downloaded(site)[0] >= model_bytes
        assert auto.downloaded(site)[1:] == [0, adapter]


def test_a_cache_belongs_to_the_pods_of_one_namespace_and_is_not_open_to_all(auto: AutoRun) -> None:
    for site in CACHES:
        (tenant,) = (auto.caches / f"{site}-cache").iterdir()
        files = list(tenant.rglob("*"))

        assert tenant.name == auto.namespace.name
        assert len(list(tenant.glob("models/*/model.safetensors"))) == 1
        assert len(list(tenant.glob("profiles/*.json"))) == 1
        assert [path for path in files if path.stat().st_uid != USER] == []
        assert [path for path in (tenant, *files) if path.stat().st_mode & 0o002] == []
