"""The task of a trainer: its plan, its data, and URLs for exactly the objects that this task may read and write."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in_runs import StandInPlacement, World, a_run, a_site
from trainer_results import BASE, WEIGHTS, a_profile, good_trainer

from fedpipe_operator import names
from fedpipe_operator.admission import MAX_RESULT_BYTES, AdmittedDryExport, RefusedError, max_update_bytes
from fedpipe_operator.aggregation.encoded import shapes_of
from fedpipe_operator.aggregation.gate import check_size, max_adapter_bytes
from fedpipe_operator.api import TrainingSpec
from fedpipe_operator.planning import DEFAULT_LEARNING_RATE
from fedpipe_operator.reconcile import export_tasks
from fedpipe_operator.reconcile.reconciler import tasks
from fedpipe_operator.reconcile.tasks import TaskContext, TaskInputs
from fedpipe_operator.rounds import Run, StartDryExport, StartEvaluation, StartExport, StartProfile, StartTraining
from fedpipe_operator.rounds.observed import CommitSummary, summarize_commit, summarize_plan
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan
from fedpipe_trainer import checkpoint
from fedpipe_trainer.contract import (
    MAX_PROGRESS_BYTES,
    Data,
    DryExportResult,
    ExportFile,
    ImportanceMethod,
    Measured,
    Model,
    Outcome,
    PartsUpload,
    PiecesUpload,
    PostForm,
    ProfileTask,
    RunRef,
    Wire,
    parse_task,
)

INPUTS = TaskInputs(Model(source="file:///models/toy"), Data(train="/data/train.jsonl", validation="/data/validation.jsonl"))
INPUTS_WITHOUT_DATA = TaskInputs(Model(source="file:///models/toy"))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubPlacement(StandInPlacement):
    """The model is of a hub."""

    def inputs(self, run: Run, site: str) -> TaskInputs:
        return replace(super().inputs(run, site), model=Model(source="hf://org/toy@main"))


class SignedUrls:
    """URLs that name the key and the verb that they allow, as a signature does."""

    def url_to_read(self, key: str, seconds: int) -> str:
        return f"https://store/{key}?read={seconds}"

    def url_to_write(self, key: str, seconds: int) -> str:
        return f"https://store/{key}?write={seconds}"


class SignedForms:
    """Forms that name the key and the most bytes that they allow, and uploads in parts that name the key."""

    def parts_to_write(self, key: str, seconds: int, size: int, part_bytes: int) -> PartsUpload:
        def url(query: str) -> str:
            return f"https://store/{key}?uploadId=1&{query}&{'signature' * 40}&seconds={seconds}"

        parts = tuple(url(f"part={number}") for number in range(1, 1 + -(-size // part_bytes)))
        return PartsUpload(part_bytes=part_bytes, parts=parts, listing=url("list"), finish=url("finish"), object=url("object"))

    def form_to_write(self, key: str, seconds: int, at_most: int) -> PostForm:
        return PostForm(url="https://store/bucket", fields={"key": key, "bytes": str(at_most), "seconds": str(seconds)})


FOUND = AdmittedDryExport(
    DryExportResult(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="",
        round=0,
        attempt=0,
        outcome=Outcome.COMPLETED,
        measured=Measured(),
        adapter=(ExportFile(name="adapter_config.json", size=400), ExportFile(name="adapter_model.safetensors", size=100 << 20)),
        merged=(ExportFile(name="model.safetensors", size=13 << 30), ExportFile(name="additional_chat_templates/tools.jinja", size=900)),
    )
)


def a_context(run: Run | None = None) -> TaskContext:
    return TaskContext(run or a_run(), SignedUrls())


def allowed(task: Wire) -> set[tuple[str, str]]:
    """Verb and key of every URL anywhere in the task."""
    return {(verb, key) for key, verb in re.findall(r'"https://store/([^"?]+)\?(read|write)=\d+"', task.to_json())}


@pytest.mark.parametrize(
    ("accelerator", "processes"),
    [
        (None, 1),
        ({"memory": "9Gi"}, 1),
        ({"memory": "9Gi", "count": 4}, 4),
        ({"memory": "9Gi", "count": 2, "resource": "amd.com/gpu"}, 2),
        ({"memory": "9Gi", "count": 4, "resource": "nvidia.com/mig-1g.10gb"}, 1),
        ({"memory": "9Gi", "count": 4, "resource": "nvidia.com/gpu.shared"}, 1),
    ],
)
def test_steps_are_divided_among_the_whole_gpus_of_a_pod(finished: World, accelerator: dict[str, Any] | None, processes: int) -> None:
    plan = plan_of(finished, 1)
    site = next(iter(plan.plans))
    context = a_context(a_run([a_site(site, capacity={"accelerator": accelerator} if accelerator else {})]))

    profile = tasks.profile_task(context, StartProfile(site, 0), INPUTS)
    training = tasks.training_task(context, StartTraining(site, 1, 0), INPUTS, plan=plan, previous=None)

    assert (profile.processes, training.processes) == (processes, processes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A completed run of two rounds; tests only read its plans and commits."""
    world = World(a_run(), tmp_path_factory.mktemp("finished"))
    world.settle()
    return world


def plan_of(world: World, round_: int) -> RoundPlan:
    return RoundPlan.model_validate_json(world.store.read(names.round_plan(round_)) or b"")


def commit_of(world: World, round_: int) -> CommitSummary:
    return summarize_commit(RoundCommit.model_validate_json(world.store.read(names.round_commit(round_)) or b""))


def test_the_sites_read_the_global_adapter_as_the_round_has_encoded_it_and_an_export_as_it_is(tmp_path: Path) -> None:
    world = World(a_run(codec={"downlink": "Float16"}), tmp_path)
    world.settle()
    commit, context = commit_of(world, 1), a_context()
    plan = plan_of(world, 2)
    encoded, exact = names.encoded_adapter(1, commit.read_by_sites.sha256), names.global_adapter(1, commit.adapter.sha256)

    training = tasks.training_task(context, StartTraining("site-a", 2, 0), INPUTS, plan=plan, previous=commit)
    evaluation = tasks.evaluation_task(context, StartEvaluation("site-a", 1, 0), INPUTS, plan=plan, commit=commit)

    assert ("read", encoded) in allowed(training)
    assert ("read", encoded) in allowed(evaluation)
    assert training.codec is not None
    assert training.codec.downlink == "Float16"
    assert tasks.global_adapter_of(context, commit.adapter).sha256 == commit.adapter.sha256
    assert world.store.read(exact) != world.store.read(encoded)


def test_a_profile_may_write_its_result_and_a_test_object_that_it_reads_back() -> None:
    task = tasks.profile_task(a_context(), StartProfile("site-b", 1), INPUTS)

    probe = "profile/site-b/1/probe"
    assert allowed(task) == {("write", "profile/site-b/1/result.json"), ("write", probe), ("read", probe)}
    assert task.importance is ImportanceMethod.GRADIENT
    assert (task.site, task.attempt, task.round) == ("site-b", 1, 0)


def test_a_first_round_reads_its_checkpoint_and_writes_its_update(finished: World) -> None:
    task = tasks.training_task(a_context(), StartTraining("site-b", 1, 2), INPUTS, plan=plan_of(finished, 1), previous=None)

    assert allowed(task) == {
        ("read", "rounds/0001/updates/site-b/checkpoint.safetensors"),
        ("write", "rounds/0001/updates/site-b/checkpoint.safetensors"),
        ("write", "rounds/0001/updates/site-b/2/adapter.safetensors"),
        ("write", "rounds/0001/updates/site-b/2/result.json"),
    }
    assert task.global_adapter is None
    assert (task.site, task.round, task.attempt) == ("site-b", 1, 2)


def test_a_later_round_also_reads_the_adapter_that_the_round_before_committed(finished: World) -> None:
    commit = commit_of(finished, 1)

    task = tasks.training_task(a_context(), StartTraining("site-a", 2, 0), INPUTS, plan=plan_of(finished, 2), previous=commit)

    assert {key for verb, key in allowed(task) if verb == "read"} == {
        commit.adapter.name,
        "rounds/0002/updates/site-a/checkpoint.safetensors",
    }
    assert task.global_adapter is not None
    assert (task.global_adapter.sha256, task.global_adapter.size) == (commit.adapter.sha256, commit.adapter.size)


def test_an_evaluation_reads_the_rounds_adapter_and_writes_its_result(finished: World) -> None:
    commit = commit_of(finished, 2)

    task = tasks.evaluation_task(a_context(), StartEvaluation("site-c", 2, 0), INPUTS, plan=plan_of(finished, 2), commit=commit)

    assert allowed(task) == {("read", commit.adapter.name), ("write", "rounds/0002/evaluations/site-c/0/result.json")}


def test_a_training_that_evaluates_also_writes_the_evaluation_of_the_round_before(finished: World) -> None:
    action = StartTraining("site-a", 2, 1, evaluates=True)
    run = a_run(evaluation={"maxSamples": 50, "samples": 3})

    task = tasks.training_task(a_context(run), action, INPUTS, plan=plan_of(finished, 2), previous=commit_of(finished, 1))

    assert {key for verb, key in allowed(task) if verb == "write"} == {
        "rounds/0001/evaluations/site-a/1/result.json",
        "rounds/0002/updates/site-a/checkpoint.safetensors",
        "rounds/0002/updates/site-a/1/adapter.safetensors",
        "rounds/0002/updates/site-a/1/result.json",
    }
    assert task.evaluation is not None
    assert (task.evaluation.round, task.evaluation.batch_size) == (1, task.plan.micro_batch)
    assert (task.evaluation.evaluation.max_samples, task.evaluation.evaluation.samples) == (50, 3)


def test_an_evaluation_takes_no_more_samples_at_once_than_the_training(finished: World) -> None:
    plan = plan_of(finished, 2)
    smaller = plan.plans["site-a"].model_copy(update={"batch_size": 16, "micro_batch_size": 4})
    plan = plan.model_copy(update={"plans": {**plan.plans, "site-a": smaller}})

    first, retry = (
        tasks.training_task(a_context(), action, INPUTS, plan=plan, previous=commit_of(finished, 1)).evaluation
        for action in (StartTraining("site-a", 2, 0, evaluates=True), StartTraining("site-a", 2, 1, micro_batch=2, evaluates=True))
    )

    assert first is not None
    assert retry is not None
    assert (first.batch_size, retry.batch_size) == (4, 2)


def test_the_trainings_of_round_1_evaluate_the_base(finished: World) -> None:
    action = StartTraining("site-c", 1, 0, evaluates=True)

    task = tasks.training_task(a_context(), action, INPUTS, plan=plan_of(finished, 1), previous=None)

    assert ("write", "rounds/0000/evaluations/site-c/0/result.json") in allowed(task)
    assert task.global_adapter is None
    assert task.evaluation is not None
    assert task.evaluation.round == 0


def test_a_large_file_of_an_export_is_written_in_parts_whose_urls_fit_into_a_secret(finished: World) -> None:
    context, plan = replace(a_context(), forms=SignedForms()), summarize_plan(plan_of(finished, 2))

    task = export_tasks.export_task(context, StartExport(2, 0), INPUTS, plan=plan, commit=commit_of(finished, 2), found=FOUND)

    model, adapter = task.merged_files["model.safetensors"], task.adapter_files["adapter_model.safetensors"]
    assert isinstance(model, PartsUpload)
    assert isinstance(adapter, PartsUpload)
    assert len(model.parts) * model.part_bytes >= 13 << 30
    assert len(adapter.parts) * adapter.part_bytes >= 100 << 20
    assert all("/export/merged/model.safetensors?uploadId=1&" in url for url in (*model.parts, model.listing, model.finish))
    assert isinstance(task.merged_files["additional_chat_templates/tools.jinja"], str)
    assert len(task.to_json()) < 2**20
    assert "uploadId" not in repr(task)


def test_a_dry_export_may_write_its_result_and_nothing_else(finished: World) -> None:
    task = export_tasks.dry_export_task(a_context(), StartDryExport(1), INPUTS, plan=summarize_plan(plan_of(finished, 1)))

    assert allowed(task) == {("write", "export/dry/1/result.json")}
    assert task.ranks == dict.fromkeys(WEIGHTS, a_run().spec.planning.max_rank)
    assert task.model.fingerprint == BASE


@pytest.mark.parametrize(("exported", "folders"), [({"adapter": True, "merged": False}, {"adapter"}), ({}, {"adapter", "merged"})])
def test_an_export_writes_what_the_spec_asks_for_and_reads_the_adapter(
    finished: World, exported: dict[str, bool], folders: set[str]
) -> None:
    commit = commit_of(finished, 2)

    context, plan = a_context(a_run(export=exported)), summarize_plan(plan_of(finished, 2))
    task = export_tasks.export_task(context, StartExport(2, 1), INPUTS_WITHOUT_DATA, plan=plan, commit=commit, found=FOUND)

    written = {key for verb, key in allowed(task) if verb == "write"} - {"export/1/result.json"}
    assert {key for verb, key in allowed(task) if verb == "read"} == {commit.adapter.name}
    assert {key.split("/")[1] for key in written} == folders
    assert ("export/merged/model.safetensors" in written) is ("merged" in folders)
    assert task.site == ""


@pytest.mark.parametrize(("deadline", "valid_seconds"), [("10m", 600 + 900), ("1000h", 7 * 24 * 3600)])
def test_every_url_expires_soon_after_its_stage_and_after_a_week_at_most(finished: World, deadline: str, valid_seconds: int) -> None:
    context = a_context(a_run(rounds={"count": 2, "deadline": deadline}))
    task = tasks.training_task(context, StartTraining("site-a", 1, 0), INPUTS, plan=plan_of(finished, 1), previous=None)

    assert set(re.findall(r"(?:read|write)=(\d+)", task.to_json())) == {str(valid_seconds)}


def bounded(task: Wire) -> dict[str, int]:
    """The keys that the task writes by form, and with how many bytes at most."""
    return {form.fields["key"]: int(form.fields["bytes"]) for form in forms_in(task.model_dump())}


def forms_in(value: Any) -> Iterator[PostForm]:
    if isinstance(value, dict) and value.keys() == PostForm.model_fields.keys():
        yield PostForm.model_validate(value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from forms_in(inner)


def test_where_the_store_has_forms_every_object_of_a_site_is_bound_by_what_the_admission_takes(finished: World) -> None:
    context, plan, commit = replace(a_context(), forms=SignedForms()), plan_of(finished, 2), commit_of(finished, 1)
    profile = tasks.profile_task(context, StartProfile("site-a", 0), INPUTS)
    train = tasks.training_task(context, StartTraining("site-a", 2, 1, evaluates=True), INPUTS, plan=plan, previous=commit)
    evaluate = tasks.evaluation_task(context, StartEvaluation("site-a", 2, 0), INPUTS, plan=plan, commit=commit)
    commit = commit_of(finished, 2)
    export = export_tasks.export_task(context, StartExport(2, 0), INPUTS, plan=summarize_plan(plan), commit=commit, found=FOUND)
    adapter = max_adapter_bytes(plan, "site-a")

    assert bounded(profile) == {"profile/site-a/0/result.json": MAX_RESULT_BYTES, "profile/site-a/0/probe": 8 << 20}
    assert bounded(train) == {
        "rounds/0002/updates/site-a/1/result.json": max_update_bytes(plan.plans["site-a"]),
        "rounds/0002/updates/site-a/1/adapter.safetensors": adapter,
        "rounds/0002/updates/site-a/checkpoint.safetensors": 4 * adapter + 32 * plan.plans["site-a"].steps + 2**16,
        "rounds/0001/evaluations/site-a/1/result.json": MAX_RESULT_BYTES,
    }
    assert bounded(evaluate) == {"rounds/0002/evaluations/site-a/0/result.json": MAX_RESULT_BYTES}
    assert bounded(export) == {"export/0/result.json": MAX_RESULT_BYTES}, "the files of the export are of no site"
    assert {verb for task in (profile, train, evaluate) for verb, _ in allowed(task)} == {"read"}
    check_size(adapter, plan, "site-a", stated=adapter)
    with pytest.raises(RefusedError):
        check_size(adapter + 1, plan, "site-a", stated=adapter + 1)


def test_a_large_update_is_written_in_pieces_that_are_no_larger_together_than_the_plan_and_one_more(finished: World) -> None:
    context, plan = replace(a_context(), forms=SignedForms()), plan_of(finished, 2)
    plan = plan.model_copy(update={"weights": dict.fromkeys(plan.weights, (300_000, 300_000))})
    adapter = max_adapter_bytes(plan, "site-a")

    task = tasks.training_task(context, StartTraining("site-a", 2, 1), INPUTS, plan=plan, previous=commit_of(finished, 1))

    assert isinstance(task.adapter, PiecesUpload)
    keys = [one.fields["key"] for one in task.adapter.pieces if isinstance(one, PostForm)]
    assert keys == [f"pieces/0002/site-a/1/{number:04d}" for number in range(len(task.adapter.pieces))]
    bound = sum(int(one.fields["bytes"]) for one in task.adapter.pieces if isinstance(one, PostForm))
    assert adapter <= bound < adapter + task.adapter.piece_bytes
    assert len(task.to_json()) < 2**20
    assert "pieces/0002" not in repr(task.adapter)


def test_where_progress_is_written_to_the_store_each_task_has_a_bounded_upload_for_it_beside_its_result(finished: World) -> None:
    context, plan, commit = replace(a_context(), forms=SignedForms(), writes_progress=True), plan_of(finished, 2), commit_of(finished, 1)
    profile = tasks.profile_task(context, StartProfile("site-a", 0), INPUTS)
    train = tasks.training_task(context, StartTraining("site-a", 2, 1, evaluates=True), INPUTS, plan=plan, previous=commit)
    evaluate = tasks.evaluation_task(context, StartEvaluation("site-a", 2, 0), INPUTS, plan=plan, commit=commit)
    commit = commit_of(finished, 2)
    export = export_tasks.export_task(context, StartExport(2, 0), INPUTS, plan=summarize_plan(plan), commit=commit, found=FOUND)
    bounds = {key: at_most for task in (profile, train, evaluate, export) for key, at_most in bounded(task).items() if "progress" in key}

    assert bounds == dict.fromkeys(
        (
            "profile/site-a/0/progress.json",
            "rounds/0002/updates/site-a/1/progress.json",
            "rounds/0002/evaluations/site-a/0/progress.json",
            "export/0/progress.json",
        ),
        MAX_PROGRESS_BYTES,
    )
    assert all(task.progress is not None for task in (profile, train, evaluate, export))


def test_a_form_expires_when_a_url_of_the_task_does(finished: World) -> None:
    context = replace(a_context(), forms=SignedForms())
    task = tasks.training_task(context, StartTraining("site-a", 2, 1), INPUTS, plan=plan_of(finished, 2), previous=commit_of(finished, 1))
    (read,) = set(re.findall(r"\?read=(\d+)", task.to_json()))

    assert isinstance(task.adapter, PostForm)
    assert task.adapter.fields["seconds"] == read


def test_a_checkpoint_of_a_whole_round_fits_into_its_form(finished: World, tmp_path: Path) -> None:
    plan = plan_of(finished, 2)
    task = tasks.training_task(
        replace(a_context(), forms=SignedForms()), StartTraining("site-a", 2, 0), INPUTS, plan=plan, previous=commit_of(finished, 1)
    )
    shapes = shapes_of(plan, "site-a")
    parameters = {key: torch.nn.Parameter(torch.ones(shape)) for key, shape in shapes.items()}
    optimizer = torch.optim.AdamW(parameters.values())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    steps = plan.plans["site-a"].steps
    state = checkpoint.TrainingState(micro_batch=1, step=steps, losses=(1.2345678901234567e-05,) * steps)
    checkpoint.save(tmp_path / "checkpoint", "identity" * 8, state, trainable=parameters, optimizer=optimizer)

    assert (tmp_path / "checkpoint").stat().st_size <= bounded(task)["rounds/0002/updates/site-a/checkpoint.safetensors"]


def test_no_task_of_a_run_names_another_sites_objects(tmp_path: Path) -> None:
    written_tasks: list[dict[str, Any]] = []

    def trainer(task: Any, folder: Path) -> Any:
        written_tasks.append(json.loads(task.to_json()))
        return good_trainer(task, folder)

    World(a_run(), tmp_path, trainer).settle()

    for task in written_tasks:
        task.pop("provenance", None)  # of an export, which is no site's: the model card names those that contributed
        others = {"site-a", "site-b", "site-c"} - {task["site"]}
        assert not [other for other in others if other in json.dumps(task)]


def test_a_site_trains_its_own_plan_on_the_base_and_labels_of_the_run(finished: World) -> None:
    spec: dict[str, Any] = {"task": {"type": "SequenceClassification", "maxLength": 16}, "rounds": {"deadline": "90s"}}
    plan = plan_of(finished, 1)
    plan = plan.model_copy(update={"plans": {**plan.plans, "site-b": plan.plans["site-b"].model_copy(update={"steps": 77})}})

    task = tasks.training_task(a_context(a_run(**spec)), StartTraining("site-b", 1, 0), INPUTS, plan=plan, previous=None)

    assert task.plan.steps == 77
    assert task.model.fingerprint == BASE
    assert task.model.source == "file:///models/toy"
    assert task.objective.labels == ("a", "b", "c")
    assert task.data == INPUTS.data
    assert task.deadline_seconds == 90.0


@pytest.mark.parametrize("kind", ["profile", "train", "evaluate-r2", "export"])
def test_a_task_that_starts_late_in_its_stage_has_the_seconds_that_are_left_of_it(tmp_path: Path, kind: str) -> None:
    """It is not waited for any longer: what it sent after that would be lost."""
    world = World(a_run(rounds={"count": 2, "deadline": "10m"}, export={"adapter": True}), tmp_path)
    (name, *_) = [name for name in world.work_until(kind) if kind in name]
    world.now += 400
    world.backend.kill(name)
    world.reconcile()

    first, retry = (parse_task(world.backend.tasks[one]) for one in (name, name.replace("-a0", "-a1")))
    assert (first.deadline_seconds, retry.deadline_seconds) == (600.0, 200.0)


def test_the_urls_of_a_task_that_starts_late_expire_with_its_stage() -> None:
    late = replace(a_context(), stage_seconds=200.0)

    assert (late.write("result"), late.read("adapter")) == ("https://store/result?write=1100", "https://store/adapter?read=1100")


def test_after_a_suspension_a_task_has_a_whole_deadline_again(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 1, "deadline": "10m"}), tmp_path)
    world.work_until("train-r1")
    world.now += 5000
    world.restart()
    world.now += 100
    world.backend.kill("toy-train-r1-site-a-a0")
    world.reconcile()

    assert parse_task(world.backend.tasks["toy-train-r1-site-a-a1"]).deadline_seconds == 500.0


def test_every_task_but_the_first_profiles_uses_the_hubs_commit_that_the_sites_were_profiled_with(tmp_path: Path) -> None:
    """The stand-ins' placement is of a hub here; a site joins after round 1."""
    seen: dict[str, set[str | None]] = {}

    def trainer(task: Any, folder: Path) -> Any:
        seen.setdefault(f"{task.kind} {task.site}".strip(), set()).add(task.model.commit)
        return a_profile(task, model_revision=COMMIT) if isinstance(task, ProfileTask) else good_trainer(task, folder)

    world = World(a_run(2), tmp_path, trainer)
    world.reconciler.placement = HubPlacement()
    world.work_until("train-r1")
    world.run = replace(world.run, sites=a_run(3).sites)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert {what: commits for what, commits in seen.items() if what.startswith("profile")} == {
        "profile site-a": {None},
        "profile site-b": {None},
        "profile site-c": {COMMIT},
    }
    assert {commit for what, commits in seen.items() if not what.startswith("profile") for commit in commits} == {COMMIT}
    assert {what.split()[0] for what in seen} == {"profile", "dry-export", "train", "evaluate", "export"}


TRAINING: dict[str, Any] = {"learningRate": 0.5, "warmupSteps": 5, "weightDecay": 0.1, "dropout": 0.2, "seed": 4, "maxSteps": 9}


def test_of_a_plan_of_an_earlier_version_spec_training_is_copied_into_the_task_with_the_learning_rate_of_the_plan(finished: World) -> None:
    plan = plan_of(finished, 1).model_copy(update={"learning_rate": 0.003, "training": None})

    task = tasks.training_task(a_context(a_run(training=TRAINING)), StartTraining("site-a", 1, 0), INPUTS, plan=plan, previous=None)

    hyper = task.hyperparameters
    assert (hyper.learning_rate, hyper.warmup_steps, hyper.weight_decay, hyper.dropout, hyper.seed) == (0.003, 5, 0.1, 0.2, 4)


def with_training(world: World, **training: Any) -> None:
    """The spec is edited."""
    spec = world.run.spec.model_copy(update={"training": TrainingSpec.model_validate(training)})
    world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": spec}))


def test_an_edit_of_spec_training_changes_no_round_that_has_begun(tmp_path: Path) -> None:
    """All its trainings are alike, also those that are tried again, and it is normalised by what they were made with."""
    world = World(a_run(rounds={"count": 2}), tmp_path)
    world.work_until("train-r1")
    with_training(world, **TRAINING)
    world.backend.kill("toy-train-r1-site-a-a0")
    world.settle()

    task = {name: json.loads(text) for name, text in world.backend.tasks.items()}
    of_trainings = {name: one["hyperparameters"] for name, one in task.items() if "train-r" in name}
    first, retry = (of_trainings[f"toy-train-r1-site-a-a{attempt}"] for attempt in (0, 1))
    assert first == retry
    assert task["toy-aggregate-r1-a0"]["warmupSteps"] == first["warmupSteps"] == 0
    assert of_trainings["toy-train-r2-site-a-a0"]["dropout"] == 0.2
    assert task["toy-aggregate-r2-a0"]["warmupSteps"] == of_trainings["toy-train-r2-site-a-a0"]["warmupSteps"] == 5


@pytest.mark.parametrize(("training", "rate"), [({"learningRate": 0.5}, 0.5), ({}, DEFAULT_LEARNING_RATE)])
def test_a_plan_of_an_earlier_version_has_no_learning_rate_and_the_spec_s_counts(
    finished: World, training: dict[str, float], rate: float
) -> None:
    plan = plan_of(finished, 1).model_copy(update={"learning_rate": None, "training": None, "hyperparameters": ()})

    task = tasks.training_task(a_context(a_run(training=training)), StartTraining("site-a", 1, 0), INPUTS, plan=plan, previous=None)

    assert task.hyperparameters.learning_rate == rate


@pytest.mark.parametrize(("training", "is_tested"), [({"learningRate": 0.5}, False), ({}, True)])
def test_a_profile_tests_learning_rates_where_the_spec_has_none(training: dict[str, float], is_tested: bool) -> None:
    task = tasks.profile_task(a_context(a_run(training=training)), StartProfile("site-a", 0), INPUTS)

    assert (task.range_test is not None) is is_tested


@pytest.mark.parametrize(
    ("task", "evaluation", "tokens"),
    [
        ({"type": "CausalLM", "prompt": "{a}", "response": "{b}"}, {"maxNewTokens": 200}, 200),
        ({"type": "Seq2SeqLM", "prompt": "{a}", "response": "{b}"}, {"maxNewTokens": 200, "generations": 0}, 0),
        ({"type": "SequenceClassification"}, {"maxNewTokens": 200}, 0),
        ({"type": "Preference"}, {"maxNewTokens": 200}, 0),
    ],
    ids=["it answers", "none are asked for", "a classifier", "pairs"],
)
def test_a_profile_knows_how_many_tokens_an_evaluation_answers_with(task: dict[str, Any], evaluation: dict[str, Any], tokens: int) -> None:
    found = tasks.profile_task(a_context(a_run(task=task, evaluation=evaluation)), StartProfile("site-a", 0), INPUTS)

    assert found.max_new_tokens == tokens


def test_every_round_is_evaluated_on_the_same_rows_in_the_same_batches_whichever_task_does_it(finished: World) -> None:
    context = a_context(a_run(training={"seed": 4}, evaluation={"maxSamples": 50, "samples": 3}))
    plan, commit = plan_of(finished, 2).model_copy(update={"training": None}), commit_of(finished, 1)

    trains = tasks.training_task(context, StartTraining("site-a", 2, 0, evaluates=True), INPUTS, plan=plan, previous=commit)
    last = tasks.evaluation_task(context, StartEvaluation("site-a", 2, 0), INPUTS, plan=plan, commit=commit)

    assert trains.evaluation is not None
    assert trains.evaluation.evaluation == last.evaluation
    assert trains.hyperparameters.seed == last.seed == 4
    assert trains.evaluation.batch_size == last.batch_size == plan.plans["site-a"].micro_batch
    assert trains.plan.bits == last.bits


@pytest.mark.parametrize(
    ("planned", "measured"),
    [([1, 2, 4, 8, 16], (1, 4, 16)), ([8, 1, 4, 2], (1, 4, 8)), ([16, 2], (2, 16)), ([4], (4,))],
)
def test_a_profile_measures_the_smallest_a_middle_and_the_largest_batch_at_the_largest_rank(
    planned: list[int], measured: tuple[int, ...]
) -> None:
    run = a_run(planning={"bits": [4, 16], "ranks": [4, 32, 0], "batchSizes": planned})

    task: ProfileTask = tasks.profile_task(a_context(run), StartProfile("site-a", 0), INPUTS)

    assert task.batch_sizes == measured
    assert task.rank == 32
    assert task.bits == (4, 16)


def test_a_task_that_reads_data_needs_inputs_with_data() -> None:
    with pytest.raises(ValueError, match="its inputs have none"):
        tasks.profile_task(a_context(), StartProfile("site-a", 0), INPUTS_WITHOUT_DATA)
