"""The operator's reconciles on a stand-in cluster: Jobs and Secrets in, status and events out."""

import copy
import json
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_user import wait_until
from health import is_met, kstatus
from stand_in_cluster import SETTINGS, KubeWorld, renamed, stamp
from stand_in_runs import a_run, a_site
from trainer_results import a_dry_export, good_trainer

from fedpipe_operator.api import ConditionType, DeletionPolicy, StoreSpec
from fedpipe_operator.api.meta import FINALIZER, SecretReference
from fedpipe_operator.backend import JobState, TaskKind
from fedpipe_operator.cluster import kube_job
from fedpipe_operator.cluster.api import JOBS, RUNS, SECRETS, Kind
from fedpipe_operator.cluster.credentials import StoreConnection
from fedpipe_operator.cluster.objects import is_ours
from fedpipe_operator.cluster.workers import Workers
from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.manifests.metadata import object_name
from fedpipe_operator.rounds import Run, job_of
from fedpipe_operator.settings import Settings
from fedpipe_operator.store import DirectoryStore
from fedpipe_operator.store.connections import _CALL
from fedpipe_trainer.contract import DryExportTask, ExportFile


def test_a_run_goes_from_its_object_to_its_end_and_leaves_no_task_behind(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, workers=Workers)

    world.settle()
    world.reconcile()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.body()["status"]["round"] == 2
    assert world.active_jobs() == []
    assert world.api.all(SECRETS) == []


def test_the_tasks_of_a_round_go_after_the_next_jobs_are_made_since_deleting_takes_time(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.settle()
    calls = [call for call in world.api.noted if call.startswith(("create jobs", "deletecollection secrets"))]
    before = [calls[at - 1].rpartition("-")[0] for at, call in enumerate(calls) if call == "deletecollection secrets"]

    assert before == [f"create jobs toy-{job}" for job in ("dry-export-r1-a0", "train-r2-site-c-a0")]


def test_a_site_and_round_cost_one_job_one_secret_and_one_status_write_and_a_round_eight_calls_more(tmp_path: Path) -> None:
    """Of ten sites, ten rounds and the sites' own five calls that is 4.99 calls a site and round: at most five is the aim."""
    sites, rounds = 6, 4
    world = KubeWorld(tmp_path, a_run(sites, rounds={"count": rounds}))
    world.settle()
    calls = Counter(" ".join(call.split()[:2]) for call in world.api.noted)

    assert calls["create jobs"] == calls["create secrets"] == sites * (rounds + 2) + 2, (
        "profile, rounds, last evaluation; the export and its trial"
    )
    assert calls["status federatedfinetunes"] <= calls["create jobs"] + 3 * rounds + 2
    assert calls["create events"] <= 4 * (rounds + 1) + 1, "that the export is tried"
    assert calls["deletecollection secrets"] <= rounds
    assert calls["merge federatedfinetunes"] <= 2, "the finalizer, while the run exports"
    counted = {"create jobs", "create secrets", "status federatedfinetunes", "create events", "deletecollection secrets"}
    others = calls.keys() - counted - {"merge federatedfinetunes"}
    assert others == {"status jobs"}, "which the stand-in for the Job controller writes"


def test_tasks_that_could_not_be_deleted_are_deleted_by_a_later_reconcile(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.api.trouble["deletecollection secrets"] = TransientError("Unreachable", "the API server is away")
    with pytest.raises(TransientError, match="Unreachable"):
        world.work_until("train-r1")
    before = world.api.all(SECRETS)
    world.api.trouble.clear()
    world.reconcile()

    assert len(before) == 4
    left = {one["metadata"]["name"].rpartition("-")[0] for one in world.api.all(SECRETS)}
    assert left == {"toy-dry-export-r1-a0"}


def test_every_job_and_secret_is_made_once_even_with_a_new_operator_at_every_reconcile(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    for _ in range(200):
        world.restart()
        world.reconcile()
        if "Complete" in world.conditions():
            break
        if world.active_jobs():
            world.work(world.active_jobs()[-1])
        else:
            world.await_workers()
            world.reconcile()
    made = [call for call in world.api.noted if call.startswith("create jobs")]

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert made == list(dict.fromkeys(made))


def test_a_task_that_was_made_without_its_job_is_created_again_with_urls_that_are_valid(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.api.trouble["create jobs"] = TransientError("Unreachable", "the API server is away")
    with pytest.raises(TransientError, match="Unreachable"):
        world.reconcile()
    world.api.trouble.clear()
    left = world.api.all(SECRETS)[0]
    world.api.merge(SECRETS, "default", left["metadata"]["name"], {"stringData": {"task.json": "of yesterday"}})

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [call for call in world.api.noted if call.startswith("delete secrets")] == [f"delete secrets {left['metadata']['name']}"]
    assert len([call for call in world.api.noted if call.startswith(("apply", "merge secrets"))]) == 1, "the test's own"


def the_jobs_object(world: KubeWorld) -> str:
    """The name in Kubernetes of the run's first Job."""
    return object_name(world.run, job_of(world.run, TaskKind.PROFILE, site="site-a"))


def test_a_secret_that_the_run_did_not_make_is_neither_read_nor_changed(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    name, theirs = the_jobs_object(world), {"metadata": {"name": "x"}, "stringData": {"task.json": "of somebody else"}}
    world.api._put(SECRETS, "default", name, theirs)

    with pytest.raises(TransientError, match=f"NameTaken: there is a Secret default/{name} that this run did not make: delete it"):
        world.reconcile()

    assert world.api.objects[SECRETS.plural, "default", name]["stringData"] == theirs["stringData"]
    assert name not in [job.name for job in world.jobs()]


def test_a_task_secret_cannot_be_changed_once_it_is_made(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()

    assert {one["immutable"] for one in world.api.all(SECRETS)} == {True}


def test_two_runs_and_sites_whose_derived_names_collide_do_not_exchange_tasks(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run([a_site("profile-b"), a_site("b")], sites={"quorum": 1.0}))
    one, other = renamed(world.run, "a"), renamed(world.run, "a-profile")
    assert (
        job_of(one, TaskKind.PROFILE, site="profile-b").name == job_of(other, TaskKind.PROFILE, site="b").name == "a-profile-profile-b-a0"
    )

    world.add(one)
    world.add(other)
    world.reconcile("a")
    world.reconcile("a-profile")

    tasks = [json.loads(secret["stringData"]["task.json"]) for secret in world.api.all(SECRETS)]
    owners = [secret["metadata"]["ownerReferences"][0]["uid"] for secret in world.api.all(SECRETS)]
    assert [task["run"]["uid"] for task in tasks] == owners
    assert len({job.name for job in world.jobs()}) == len(tasks) == 2


FOREIGN = {
    "a round in words": {"fedpipe.io/round": "one"},
    "a number without an end": {"fedpipe.io/attempt": "9" * 60},
    "a number of another alphabet": {"fedpipe.io/round": "\u0661"},
    "a negative number": {"fedpipe.io/attempt": "-1"},
    "an unknown task": {"fedpipe.io/task": "mine"},
    "another site": {"fedpipe.io/site": "site-b"},
    "another run": {"fedpipe.io/run": "other"},
    "another uid": {"fedpipe.io/run-uid": "uid-2"},
    "an empty uid": {"fedpipe.io/run-uid": ""},
}


@pytest.mark.parametrize("labels", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_job_with_our_labels_and_a_malformed_value_is_not_looked_at(tmp_path: Path, labels: dict[str, str]) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    foreign = world.api.all(JOBS)[0]
    foreign["metadata"] |= {"labels": foreign["metadata"]["labels"] | labels}

    assert kube_job(foreign) is None
    assert not is_ours(foreign["metadata"])


@pytest.mark.parametrize(
    "metadata",
    [
        {"ownerReferences": []},
        {"ownerReferences": None},
        {"ownerReferences": [{"kind": "FederatedFineTune", "uid": "uid-1"}]},
        {"ownerReferences": [{"kind": "Job", "uid": "uid-1", "controller": True}]},
        {"ownerReferences": [{"kind": "FederatedFineTune", "uid": "uid-2", "controller": True}]},
        {"labels": {"fedpipe.io/run": "toy"}},
        {"labels": None},
        {"name": "of-somebody-else"},
    ],
    ids=str,
)
def test_a_job_without_the_owner_or_the_name_that_its_labels_say_is_not_looked_at(tmp_path: Path, metadata: dict[str, Any]) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    ours = world.api.all(JOBS)[0]
    assert kube_job(ours) is not None

    assert kube_job(ours | {"metadata": ours["metadata"] | metadata}) is None


def test_a_reconcile_with_nothing_new_makes_no_call(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    world.reconcile()
    world.api.noted.clear()

    world.reconcile()

    assert world.api.noted == []


def test_a_watch_that_lags_does_not_make_the_operator_act_twice(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    before = world.view()
    world.reconcile()
    calls = len(world.api.noted)

    world.runs.reconcile(before, 0)

    assert [call for call in world.api.noted[calls:] if not call.startswith("list")] == []


def test_a_spec_that_does_not_parse_is_reported_with_its_path_and_corrected_by_the_next_edit(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(task={"type": "CausalLM", "prompt": "{text}", "response": "{answer}"}))
    body = world.body()
    body["spec"]["task"]["slotPattern"] = "(no end"
    world.api._put(RUNS, "default", "toy", body)

    assert world.reconcile() is None
    assert world.condition("Valid")["status"] == "False"
    assert world.condition("Valid")["message"].startswith("spec.task.slotPattern: invalid regular expression")
    assert world.events()[0][0] == "SpecInvalid"

    world.add(world.run)
    world.reconcile()

    assert world.condition("Valid")["status"] == "True"
    assert world.conditions()["Progressing"] == "Profiling"


def test_a_change_of_what_the_rounds_rest_on_is_refused_where_the_crd_let_it_through(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    began = world.body()
    other = copy.deepcopy(began)
    other["spec"]["planning"] = {"ranks": [2]}
    world.api._put(RUNS, "default", "toy", other)

    with pytest.raises(TransientError, match="SpecChanged"):
        world.reconcile()
    assert world.condition("Ready")["reason"] == "SpecChanged"
    assert "spec.planning" in world.condition("Ready")["message"]

    world.api._put(RUNS, "default", "toy", world.body() | {"spec": began["spec"]})
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_what_may_change_may_change_in_the_midst_of_a_run(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    body = world.body()
    body["spec"] |= {"rounds": {"count": 3}, "training": {"learningRate": 0.5}}
    world.api._put(RUNS, "default", "toy", body)
    world.settle()

    assert [entry["round"] for entry in world.body()["status"]["history"]] == [1, 2, 3]


def test_a_job_of_an_earlier_run_of_the_same_name_is_another_and_not_waited_for(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    earlier = {job.name for job in world.jobs()}
    for name in world.active_jobs():
        world.end(name, "Failed")
    world.add(with_uid(world.run, "uid-2"))
    world.reconcile()

    assert len({job.name for job in world.jobs()} - earlier) == len(earlier)


def with_uid(run: Run, uid: str) -> Run:
    """A later run of the same name."""
    metadata = run.resource.metadata.model_copy(update={"uid": uid})
    return replace(run, resource=run.resource.model_copy(update={"metadata": metadata}))


def test_a_job_that_the_run_did_not_make_is_waited_for(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    name = the_jobs_object(world)
    world.api._put(JOBS, "default", name, {"metadata": {"labels": {"fedpipe.io/run": "toy", "fedpipe.io/run-uid": "uid-1"}}})

    with pytest.raises(TransientError, match="NameTaken"):
        world.reconcile()

    world.api.delete(JOBS, "default", name, uid=f"uid-of-jobs-{name}")
    world.reconcile()

    assert "toy-profile-site-a-a0" in world.active_jobs()


def test_two_runs_share_a_site_one_job_at_a_time(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(1))
    other = renamed(world.run, "other")
    world.add(other)
    world.reconcile("toy")
    world.reconcile("other")

    assert world.active_jobs() == ["toy-profile-site-a-a0"]
    assert "site-a waits for a free job slot, which toy uses" in world.condition("Progressing", "other")["message"]

    world.work("toy-profile-site-a-a0")
    world.reconcile("other")

    assert world.active_jobs() == ["other-profile-site-a-a0"]


@pytest.mark.parametrize("was_made", [True, False], ids=["it was made", "it was not made"])
def test_a_job_whose_creation_got_no_answer_keeps_its_place_until_the_watch_or_its_run_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, was_made: bool
) -> None:
    world = KubeWorld(tmp_path, a_run(1))
    world.add(renamed(world.run, "other"))
    create = world.api.create

    def lose_the_answer(kind: Kind, namespace: str, body: dict[str, Any]) -> Any:
        if kind is not JOBS:
            return create(kind, namespace, body)
        if was_made:
            create(kind, namespace, body)
        raise TransientError("ApiUnavailable", "read timed out")

    monkeypatch.setattr(world.api, "create", lose_the_answer)
    with pytest.raises(TransientError, match="read timed out"):
        world.reconcile("toy")
    monkeypatch.undo()
    unknown = {key: one for key, one in world.api.objects.items() if key[0] == JOBS.plural}  # the watch is late
    world.api.objects = {key: one for key, one in world.api.objects.items() if key not in unknown}
    world.reconcile("other")
    assert world.active_jobs() == []
    assert "site-a waits for a free job slot, which toy uses" in world.condition("Progressing", "other")["message"]

    world.api.objects |= unknown
    world.reconcile("toy")
    world.reconcile("other")

    assert world.active_jobs() == ["toy-profile-site-a-a0"]


def test_a_job_that_was_refused_for_now_leaves_its_place_to_others(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(1))
    world.add(renamed(world.run, "other"))
    world.api.trouble["create jobs"] = TransientError("QuotaExceeded", "exceeded quota")
    with pytest.raises(TransientError, match="exceeded quota"):
        world.reconcile("toy")
    del world.api.trouble["create jobs"]
    world.reconcile("other")

    assert world.active_jobs() == ["other-profile-site-a-a0"]


def test_a_site_with_room_for_two_does_two_runs_at_once(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run([a_site("site-a", maxConcurrentJobs=2)]))
    world.add(renamed(world.run, "other"))
    world.reconcile("toy")
    world.reconcile("other")

    assert world.active_jobs() == ["other-profile-site-a-a0", "toy-profile-site-a-a0"]


def test_suspension_ends_the_jobs_and_the_same_round_goes_on_after_it(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.work_until("train-r2")
    world.api.merge(RUNS, "default", "toy", {"spec": {"suspend": True}})
    world.reconcile()

    assert world.active_jobs() == []
    assert world.conditions()["Suspended"] == "SuspendedBySpec"
    assert world.body()["status"]["round"] == 2

    world.api.merge(RUNS, "default", "toy", {"spec": {"suspend": False}})
    world.now += 90000
    world.settle()

    assert world.body()["status"]["round"] == 2
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_store_that_cannot_be_used_blocks_the_run_and_is_reported_once(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    world.stores.trouble = UserError("StoreFull", "bucket fedpipe: no space left; free space")
    for _ in range(3):
        with pytest.raises(TransientError):
            world.reconcile()

    assert world.condition("Progressing") | {"lastTransitionTime": ""} == {
        "type": "Progressing",
        "status": "False",
        "reason": "StoreFull",
        "message": "bucket fedpipe: no space left; free space",
        "observedGeneration": 1,
        "lastTransitionTime": "",
    }
    assert [reason for reason, _ in world.events()].count("StoreFull") == 1

    world.stores.trouble = None
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_run_whose_objects_take_too_much_memory_waits_until_there_is_room_and_leaves_none_when_it_ends(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    memory = world.runs.cluster.memory
    memory.total = 10_000
    world.reconcile()
    for job in world.active_jobs():
        world.work(job)
    for _ in range(3):
        with pytest.raises(TransientError, match="RecordsTooLarge"):
            world.reconcile()
    assert world.condition("Progressing")["reason"] == "RecordsTooLarge"
    assert memory.held("default") == 0

    memory.total = 2**30
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"
    world.reconcile()
    assert memory.held("default") == 0


def test_a_run_that_is_deleted_leaves_the_operators_memory(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    memory = world.runs.cluster.memory
    world.work_until("train-r1")
    assert memory.held("default") > 0

    world.runs.forget(world.body())

    assert memory.held("default") == 0


def test_a_run_that_is_blocked_at_its_first_reconcile_says_that_its_spec_is_valid(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.stores.trouble = UserError("StoreFull", "bucket fedpipe: no space left; free space")
    with pytest.raises(TransientError):
        world.reconcile()

    assert world.condition("Ready")["reason"] == "StoreFull"
    assert world.condition("Valid")["status"] == "True"


def test_a_single_transient_error_is_not_reported(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()
    world.stores.trouble = TransientError("StoreUnavailable", "503")
    with pytest.raises(TransientError):
        world.reconcile()

    assert world.conditions()["Progressing"] == "Profiling"
    with pytest.raises(TransientError):
        world.reconcile()
    assert world.condition("Progressing")["reason"] == "StoreUnavailable"


def test_an_aggregation_above_the_limit_is_a_job_of_the_operators_image_with_the_stores_credentials(tmp_path: Path) -> None:
    run = a_run(store={"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}})
    world = KubeWorld(tmp_path, run, settings=Settings(trainer_image="trainer:1", operator_image="operator:1", aggregation_job_threshold=1))
    world.work_until("aggregate-r1")
    job = world.api.objects[JOBS.plural, "default", world.object_name("toy-aggregate-r1-a0")]
    container = job["spec"]["template"]["spec"]["containers"][0]

    assert container["image"] == "operator:1"
    assert [one["valueFrom"]["secretKeyRef"]["name"] for one in container["env"] if "valueFrom" in one] == ["store"] * 3
    assert world.runs.cluster.workers.statuses("uid-1") == {}


def test_a_run_without_a_store_has_the_operators_default_one(tmp_path: Path) -> None:
    store = StoreSpec(bucket="fedpipe", credentials_secret_ref=SecretReference(name="ours"))
    settings = replace(SETTINGS, default_store=store, aggregation_job_threshold=1)
    world = KubeWorld(tmp_path, a_run(store=None), settings=settings)
    world.work_until("aggregate-r1")
    job = world.api.objects[JOBS.plural, "default", world.object_name("toy-aggregate-r1-a0")]

    assert "store" not in world.body()["spec"]
    assert "'name': 'ours', 'key': 'AWS_SECRET_ACCESS_KEY'" in str(job)


def test_the_status_says_where_the_results_are_also_of_a_run_on_the_default_store(tmp_path: Path) -> None:
    store = StoreSpec(bucket="ours", prefix="runs", endpoint="http://minio:9000", credentials_secret_ref=SecretReference(name="store"))
    world = KubeWorld(tmp_path, a_run(store=None), settings=replace(SETTINGS, default_store=store))
    world.work_until("train-r1")

    assert world.body()["status"]["store"] == {
        "bucket": "ours",
        "prefix": "runs/default/toy/uid-1",
        "endpoint": "http://minio:9000",
        "region": "us-east-1",
        "credentialsSecretRef": {"name": "store"},
    }


def test_a_run_that_is_blocked_still_says_where_its_results_are(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(store=None), settings=replace(SETTINGS, default_store=StoreSpec(bucket="fedpipe")))
    world.work_until("train-r1")
    world.settings = replace(SETTINGS, default_store=StoreSpec(bucket="another"))
    world.restart()
    for _ in range(2):
        with pytest.raises(TransientError, match="SpecChanged"):
            world.reconcile()

    assert world.body()["status"]["store"]["bucket"] == "fedpipe"


def test_a_change_of_the_default_store_blocks_the_runs_whose_rounds_are_stored_in_it(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(store=None), settings=replace(SETTINGS, default_store=StoreSpec(bucket="fedpipe")))
    world.work_until("train-r1")

    world.settings = replace(SETTINGS, default_store=StoreSpec(bucket="another"))
    world.restart()
    with pytest.raises(TransientError, match="SpecChanged"):
        world.reconcile()


def test_no_trainer_gets_credentials_or_a_token(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(store={"bucket": "fedpipe", "credentialsSecretRef": {"name": "store"}}))
    world.settle()

    for job in world.api.all(JOBS):
        pod = job["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert "AWS_" not in str(pod)


def test_what_is_active_long_after_its_run_ended_is_ended_too(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(export={"adapter": False, "merged": False}))
    world.settle()
    world.end("toy-train-r2-site-a-a0", "Suspended")
    assert world.active_jobs() == ["toy-train-r2-site-a-a0"]

    assert world.reconcile() == world.now + 120
    assert world.active_jobs() == ["toy-train-r2-site-a-a0"]

    world.now += 120
    world.reconcile()
    assert world.active_jobs() == []


def test_a_finished_run_goes_in_its_time(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(ttlSecondsAfterFinished=600))
    world.settle()

    assert world.reconcile() == world.now + 600
    world.now += 600
    world.reconcile()

    assert world.api.all(RUNS) == []


def test_results_are_deleted_with_the_run_only_if_the_spec_says_so_and_nothing_is_active(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(deletionPolicy=str(DeletionPolicy.DELETE)))
    world.reconcile()
    assert world.body()["metadata"]["finalizers"] == [FINALIZER]
    world.settle()
    store = world.stores.of(world.run).store
    world.api.merge(RUNS, "default", "toy", {"metadata": {"deletionTimestamp": stamp(world.now)}})

    again = world.reconcile()
    assert again is not None
    assert world.api.noted[-1] == "deletecollection jobs foreground", "a trainer that ends still writes: its Job must stay until it has"
    assert store.list() != []

    world.now += 61  # what was made in the last minute may be unknown to the watch
    world.reconcile()
    assert store.list() == []
    assert world.body()["metadata"]["finalizers"] == []


def test_a_run_whose_results_stay_has_no_finalizer(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.reconcile()

    assert "finalizers" not in world.body()["metadata"]


@pytest.mark.parametrize("policy", list(DeletionPolicy))
def test_a_run_that_is_deleted_in_its_export_leaves_no_parts_of_files(
    tmp_path: Path, policy: DeletionPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = exporting(tmp_path, policy)
    ended: list[str] = []
    monkeypatch.setattr(DirectoryStore, "abort_uploads", lambda _store, key: ended.append(key))
    world.api.merge(RUNS, "default", "toy", {"metadata": {"deletionTimestamp": stamp(world.now)}})
    world.reconcile()
    assert ended == [], "a trainer that ends still uploads"

    world.now += 61
    world.reconcile()

    assert ended == ["export/merged/model.safetensors"]
    assert world.body()["metadata"]["finalizers"] == []
    assert (world.stores.of(world.run).store.list() == []) == (policy is DeletionPolicy.DELETE)


def test_no_run_waits_for_a_store_that_its_parts_cannot_be_removed_from(tmp_path: Path) -> None:
    world = exporting(tmp_path, DeletionPolicy.RETAIN)
    world.stores.trouble = UserError("StoreDenied", "the key pair was changed")
    world.api.merge(RUNS, "default", "toy", {"metadata": {"deletionTimestamp": stamp(world.now)}})
    world.now += 61

    while world.reconcile() is not None:
        world.now += 61

    assert world.body()["metadata"]["finalizers"] == []


def test_after_its_export_a_run_whose_results_stay_has_no_finalizer_any_more(tmp_path: Path) -> None:
    world = exporting(tmp_path, DeletionPolicy.RETAIN)
    assert world.body()["metadata"]["finalizers"] == [FINALIZER]

    world.settle()
    world.now += 120
    world.reconcile()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.body()["metadata"]["finalizers"] == []


def exporting(folder: Path, policy: DeletionPolicy) -> KubeWorld:
    """A run that exports a model of gigabytes."""

    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, DryExportTask):
            return a_dry_export(task, merged=(ExportFile(name="config.json", size=1), ExportFile(name="model.safetensors", size=13 << 30)))
        return good_trainer(task, folder)

    world = KubeWorld(folder, a_run(deletionPolicy=str(policy)), trainer)
    world.work_until("toy-export")
    world.reconcile()
    return world


def test_the_settings_of_the_stand_in_are_those_that_users_get() -> None:
    assert Settings("trainer:1", "operator:1") == SETTINGS


def test_a_run_that_is_resumed_late_has_its_whole_time_again_though_a_site_was_done_before(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.work_until("train-r1")
    world.work("toy-train-r1-site-a-a0")
    world.api.merge(RUNS, "default", "toy", {"spec": {"suspend": True}})
    world.reconcile()
    world.now += 90000
    world.api.merge(RUNS, "default", "toy", {"spec": {"suspend": False}})

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.body()["status"]["history"][0]["updates"] == "3/3"


@pytest.mark.parametrize("policy", list(DeletionPolicy))
def test_whether_results_go_may_be_said_after_the_end(tmp_path: Path, policy: DeletionPolicy) -> None:
    other = {DeletionPolicy.DELETE: DeletionPolicy.RETAIN, DeletionPolicy.RETAIN: DeletionPolicy.DELETE}[policy]
    world = KubeWorld(tmp_path, a_run(deletionPolicy=str(other)))
    world.settle()
    world.api.merge(RUNS, "default", "toy", {"spec": {"deletionPolicy": str(policy)}})
    world.reconcile()
    assert world.body()["metadata"]["finalizers"] == ([FINALIZER] if policy is DeletionPolicy.DELETE else [])
    world.api.merge(RUNS, "default", "toy", {"metadata": {"deletionTimestamp": stamp(world.now)}})
    world.now += 61
    while world.reconcile() is not None:
        world.now += 61

    assert (world.stores.of(world.run).store.list() == []) == (policy is DeletionPolicy.DELETE)


def test_results_stay_if_that_is_said_while_the_run_is_being_deleted(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(deletionPolicy=str(DeletionPolicy.DELETE)))
    world.settle()
    world.stores.trouble = UserError("StoreDenied", "the key pair was changed")
    world.api.merge(RUNS, "default", "toy", {"metadata": {"deletionTimestamp": stamp(world.now)}})
    world.reconcile()
    world.now += 61
    with pytest.raises(UserError, match="StoreDenied"):
        world.reconcile()
    world.stores.trouble = None
    world.api.merge(RUNS, "default", "toy", {"spec": {"deletionPolicy": str(DeletionPolicy.RETAIN)}})
    world.reconcile()

    assert world.body()["metadata"]["finalizers"] == []
    assert world.stores.of(world.run).store.list() != []


@pytest.mark.parametrize(
    ("trouble", "refusal", "goes"),
    [
        pytest.param("SecretMissing", "NamespaceTerminating", True, id="its Secret went with the namespace"),
        pytest.param("SecretMissing", None, False, id="its Secret may come back"),
        pytest.param("StoreDenied", "NamespaceTerminating", False, id="the store may be mended"),
    ],
)
def test_a_run_goes_without_its_results_only_where_nobody_could_correct_it(
    tmp_path: Path, trouble: str, refusal: str | None, goes: bool
) -> None:
    world = KubeWorld(tmp_path, a_run(deletionPolicy=str(DeletionPolicy.DELETE)))
    world.settle()
    world.now += 61
    world.stores.trouble = UserError(trouble, "the results are out of reach")
    if refusal is not None:
        world.api.trouble["create events"] = TransientError(refusal, "the namespace is being deleted")
    world.api.merge(RUNS, "default", "toy", {"metadata": {"deletionTimestamp": stamp(world.now)}})

    with nullcontext() if goes else pytest.raises(FedPipeError, match=trouble):
        while world.reconcile() is not None:
            world.now += 61

    assert (world.body()["metadata"]["finalizers"] == []) == goes


def test_a_job_that_the_api_server_refuses_costs_its_site_and_not_the_run(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(sites={"quorum": 0.6}))
    world.api.refused = {"site-a"}

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.body()["status"]["excluded"]["site-a"] == "ApiRefused: a policy denied the request"


def test_a_priority_class_that_the_settings_do_not_name_costs_its_site_and_not_the_run(tmp_path: Path) -> None:
    urgent = a_site("site-a", podTemplate={"spec": {"priorityClassName": "high"}})
    world = KubeWorld(tmp_path, a_run([urgent, a_site("site-b"), a_site("site-c")], sites={"quorum": 0.6}))

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.body()["status"]["excluded"]["site-a"].startswith(
        "PriorityClassNotAllowed: spec.podTemplate.spec.priorityClassName is high"
    )
    assert not [call for call in world.api.noted if call.startswith("create") and "site-a" in call]


def test_the_claims_that_the_watch_knows_to_be_private_are_mounted_for_no_model(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(2))
    view = replace(world.view(), private_claims=frozenset({"models"}))

    world.runs.reconcile(view, 0)

    assert world.condition("Progressing")["reason"] == "TooFewSites"
    assert "ModelClaimNotAllowed: the claim models of spec.model.source holds the data" in world.condition("Progressing")["message"]
    assert world.jobs() == []


def test_an_event_that_cannot_be_posted_stops_nothing(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.api.trouble["create events"] = UserError("ApiForbidden", "events may not be created")

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_an_internal_error_is_reported_and_the_run_continues(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.stores.trouble = ZeroDivisionError("of ours")  # type: ignore[assignment]
    with pytest.raises(TransientError, match="OperatorFault"):
        world.reconcile()
    assert "ZeroDivisionError: of ours" in world.condition("Ready")["message"]

    world.stores.trouble = None
    world.settle()
    assert world.conditions()["Complete"] == "RoundsCompleted"


def edited(world: KubeWorld, generation: int, **spec: object) -> None:
    """Change fields of the run's spec, as the API server stores an edit."""
    world.api.merge(RUNS, "default", "toy", {"spec": spec, "metadata": {"generation": generation}})


def test_an_unobserved_run_is_in_progress_and_the_first_reconcile_sets_every_condition(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    before = world.body()
    world.reconcile()

    assert kstatus(before) == kstatus(world.body()) == "InProgress"
    assert [one["type"] for one in before["status"]["conditions"]] == ["Ready"]
    assert [one["type"] for one in world.body()["status"]["conditions"]] == list(ConditionType)
    assert world.body()["status"]["observedGeneration"] == 1


def test_an_edit_after_the_end_is_observed_in_one_write_and_the_run_stays_complete(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.settle()
    world.reconcile()
    ended = world.condition("Complete")
    world.now += 60
    edited(world, 2, rounds={"count": 5})
    stale = kstatus(world.body())
    world.reconcile()
    calls = [call for call in world.api.noted if call == "status federatedfinetunes toy"]
    world.reconcile()

    assert (stale, kstatus(world.body())) == ("InProgress", "Current")
    assert is_met(world.body(), "Complete")
    assert world.condition("Complete") == ended | {"observedGeneration": 2}
    assert [call for call in world.api.noted if call == "status federatedfinetunes toy"] == calls
    assert world.active_jobs() == []


def test_a_complete_run_whose_spec_becomes_invalid_is_stalled_until_an_edit_corrects_it(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    world.settle()
    edited(world, 2, rounds={"count": 0})
    world.reconcile()
    invalid = world.body()
    edited(world, 3, rounds={"count": 2})
    world.reconcile()

    assert kstatus(invalid) == "Failed"
    assert world.condition("Stalled")["status"] == "False"
    assert world.conditions()["Complete"] == world.conditions()["Ready"] == "RoundsCompleted"
    assert kstatus(world.body()) == "Current"


def test_a_run_whose_spec_is_corrected_is_no_longer_stalled(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path)
    edited(world, 1, rounds={"count": 0})
    world.reconcile()
    invalid = world.body()
    edited(world, 2, rounds={"count": 2})
    world.reconcile()

    assert kstatus(invalid) == "Failed"
    assert [one["type"] for one in invalid["status"]["conditions"]] == list(ConditionType)
    assert world.condition("Stalled") | {"lastTransitionTime": ""} == {
        "type": "Stalled",
        "status": "False",
        "reason": "NotStalled",
        "message": "",
        "observedGeneration": 2,
        "lastTransitionTime": "",
    }
    assert kstatus(world.body()) == "InProgress"


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than two sites are many."""
    monkeypatch.setattr("fedpipe_operator.rounds.stages.INLINE_SITES", 2)


@pytest.mark.usefixtures("many")
def test_a_round_of_many_sites_is_planned_in_a_process_of_the_operator(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, workers=Workers)
    world.settle()
    processes = world.runs.cluster.workers.statuses(world.run.resource.metadata.uid)

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert {name: status.state for name, status in processes.items() if "plan" in name} == {
        "toy-plan-r1-a0": JobState.SUCCEEDED,
        "toy-plan-r2-a0": JobState.SUCCEEDED,
    }
    assert not any("plan" in call for call in world.api.noted)


@pytest.mark.usefixtures("many")
def test_a_planning_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, workers=Workers)
    workers, uid = world.runs.cluster.workers, world.run.resource.metadata.uid
    command, workers.command = workers.command, (sys.executable, "-c", "import time; time.sleep(600)")
    world.work_until_started("toy-plan-r1-a0")
    wait_until(lambda: workers._processes, "the process runs", seconds=60)
    workers.command = command
    next(iter(workers._processes.values())).kill()
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert workers.statuses(uid)["toy-plan-r1-a0"].reason == "Killed"
    assert workers.statuses(uid)["toy-plan-r1-a1"].state is JobState.SUCCEEDED


def test_all_that_a_reconcile_asks_of_its_store_ends_within_ten_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world, seconds = KubeWorld(tmp_path), list[float]()
    opened = world.stores.of

    def of(run: Run) -> StoreConnection:
        seconds.append(_CALL.get().seconds(at_most=3600.0))
        return opened(run)

    monkeypatch.setattr(world.stores, "of", of)
    world.reconcile()

    assert 599 < seconds[0] <= 600
