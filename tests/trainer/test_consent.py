"""A trainer asks the data owner before it reads a row: the policy of its task, and the one on the data volume."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_training import Q0, a_training_task, make_runtime

from fedpipe_trainer.consent import with_consent
from fedpipe_trainer.contract import (
    POLICY_FILE,
    CausalLM,
    Data,
    DataPolicy,
    EvaluateResult,
    EvaluateTask,
    Evaluation,
    ExitCode,
    FailureReason,
    Model,
    ProfileTask,
    Progress,
    RunRef,
    RunSelector,
    SequenceClassification,
    TrainingLosses,
    TrainTask,
    parse_result,
)
from fedpipe_trainer.errors import TaskFailed, Terminated
from fedpipe_trainer.recipes import evaluate, profile, train
from fedpipe_trainer.settings import Settings
from fedpipe_trainer.tasks import perform

CLASSES = SequenceClassification(max_length=32)
LABELS = ("no", "yes")


@pytest.fixture
def task(tmp_path: Path) -> TrainTask:
    """A task whose model and data do not exist, so that only what reads neither can be found wrong with it."""
    data = Data(train=str(tmp_path / "train.jsonl"), validation=str(tmp_path / "validation.jsonl"))
    (tmp_path / "store").mkdir()
    training = a_training_task(Path("/nowhere"), tmp_path, {Q0: 2}, data=data, result=(tmp_path / "store" / "result.json").as_uri())
    for file in ("train", "validation"):
        (tmp_path / f"{file}.jsonl").unlink()
    return training


def denial_of(task: Any) -> str:
    with pytest.raises(TaskFailed) as caught:
        with_consent(task)
    assert caught.value.reason is FailureReason.POLICY_DENIED
    return caught.value.message


def test_a_task_that_the_policy_allows_has_it(task: TrainTask) -> None:
    assert with_consent(task) == task


def test_of_the_policies_of_task_and_volume_the_stricter_counts_field_by_field(task: TrainTask, tmp_path: Path) -> None:
    (tmp_path / POLICY_FILE).write_text("{maxLabels: 3, maxShownRows: 5, trainingLosses: Mean}")
    asked = task.model_copy(update={"policy": DataPolicy(max_labels=7, max_shown_rows=1)})

    assert with_consent(asked).policy == DataPolicy(max_labels=3, max_shown_rows=1, training_losses=TrainingLosses.MEAN)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("runs: {names: [other]}", "policy.runs does not select the run r"),
        ("runs: {matchLabels: {study: x}}", "policy.runs does not select the run r"),
        ("columns: [a]", "policy.columns does not allow the column 'b'"),
        ("taskTypes: [Seq2SeqLM]", "policy.taskTypes does not allow CausalLM"),
        ("minSites: 3", "policy.minSites is 3, and the run may aggregate as few as 2"),
        ("minSites: [", "the policy file"),
    ],
)
def test_a_task_that_the_volume_s_policy_does_not_allow_is_refused(task: TrainTask, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / POLICY_FILE).write_text(text)

    assert reason in denial_of(task)


def test_a_task_that_names_fewer_sites_than_the_default_is_refused(task: TrainTask) -> None:
    assert "policy.minSites is 2" in denial_of(task.model_copy(update={"contributors": 1}))


def test_the_baseline_of_a_run_is_selected_by_the_run_s_name_and_needs_a_permission_of_its_own(task: TrainTask) -> None:
    policy = DataPolicy(runs=RunSelector(names=("triage",)))
    baseline = task.model_copy(update={"baseline_of": "triage", "contributors": 1, "policy": policy})

    assert "policy.localBaseline does not allow to train the site alone" in denial_of(baseline)
    assert with_consent(baseline.model_copy(update={"policy": policy.model_copy(update={"local_baseline": True})}))


def test_a_refused_task_reads_neither_model_nor_data_and_reports_a_final_failure(task: TrainTask, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(task.model_copy(update={"policy": DataPolicy(columns=())}).to_json())

    code = perform(
        tmp_path / "task.json", settings=Settings(cache=tmp_path), write_progress=lambda _progress: None, stop_requested=lambda: False
    )

    failure = parse_result((tmp_path / "store" / "result.json").read_text()).failure
    assert code is ExitCode.POLICY_DENIED
    assert code.is_final
    assert failure is not None
    assert failure.reason is FailureReason.POLICY_DENIED


def test_a_template_that_cannot_be_parsed_is_the_author_s_fault(task: TrainTask) -> None:
    with pytest.raises(TaskFailed, match="a template of the task cannot be parsed") as caught:
        with_consent(task.model_copy(update={"objective": CausalLM(prompt="{a", response="{b}"), "policy": DataPolicy(columns=("a", "b"))}))
    assert caught.value.reason is FailureReason.BAD_TASK


def test_rows_whose_label_the_policy_does_not_allow_are_left_out_and_counted(toy: Any, tmp_path: Path) -> None:
    asked = a_profile_task(toy, tmp_path, DataPolicy(labels=LABELS), ["no", "yes", "secret", "no"])

    found = profile.run(asked, make_runtime(tmp_path))

    assert (found.labels, found.train_samples, found.validation_samples, found.skipped_rows) == (LABELS, 3, 3, 2)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (DataPolicy(max_labels=2), "column 'label' has 3 different values, and policy.maxLabels of the data owner is 2"),
        (DataPolicy(labels=("other",)), "policy.labels of the data owner allows none of the values that column 'label'"),
    ],
)
def test_a_profile_names_no_labels_that_the_policy_does_not_allow(toy: Any, tmp_path: Path, policy: DataPolicy, reason: str) -> None:
    with pytest.raises(TaskFailed, match=reason) as caught:
        profile.run(a_profile_task(toy, tmp_path, policy, ["no", "yes", "secret"]), make_runtime(tmp_path))
    assert caught.value.reason is FailureReason.POLICY_DENIED


def test_texts_are_no_labels(toy: Any, tmp_path: Path) -> None:
    asked = a_profile_task(toy, tmp_path, DataPolicy(), [f"text {number}" for number in range(101)])

    with pytest.raises(TaskFailed, match=r"policy\.maxLabels of the data owner is 100"):
        profile.run(asked, make_runtime(tmp_path))


def test_a_value_of_a_single_row_is_not_named_as_a_label_and_its_row_is_left_out(toy: Any, tmp_path: Path) -> None:
    asked = a_profile_task(toy, tmp_path, DataPolicy(), ["no", "yes", "no"])
    Path(asked.data.train).write_text(Path(asked.data.train).read_text() + '\n{"text": "x", "label": "the rare one"}')

    found = profile.run(asked, make_runtime(tmp_path))

    assert (found.labels, found.train_samples, found.validation_samples, found.skipped_rows) == (("no", "yes"), 3, 3, 1)


def test_a_column_in_which_most_values_are_of_a_single_row_has_no_labels(toy: Any, tmp_path: Path) -> None:
    asked = a_profile_task(toy, tmp_path, DataPolicy(), ["no", "yes"])
    rows = [{"text": "x", "label": label} for label in ["no", "yes", *(f"a text {number}" for number in range(5))]]
    Path(asked.data.train).write_text("\n".join(map(json.dumps, rows)))

    with pytest.raises(TaskFailed) as caught:
        profile.run(asked, make_runtime(tmp_path))

    assert caught.value.reason is FailureReason.BAD_DATA
    assert caught.value.message == (
        "most of the 9 rows have a value in column 'label' that no other row of the site has: "
        "name the column that has the labels in task.label of the run, or declare them in spec.task.labels"
    )


@pytest.mark.parametrize(("samples", "allowed", "shown"), [(5, 0, 0), (5, 2, 2), (1, 2, 1), (5, 20, 5)])
def test_no_more_rows_are_shown_than_run_and_policy_say(toy: Any, tmp_path: Path, samples: int, allowed: int, shown: int) -> None:
    found = evaluated(toy, tmp_path, samples=samples, allowed=allowed)

    assert [sample.text for sample in found.examples] == [f"text {number}" for number in range(shown)]
    assert found.samples == 8


def test_other_runs_and_other_seeds_show_the_same_rows(toy: Any, tmp_path: Path) -> None:
    texts = {tuple(sample.text for sample in evaluated(toy, tmp_path, samples=2, allowed=2, seed=seed).examples) for seed in range(4)}

    assert texts == {("text 0", "text 1")}


def test_the_answers_that_are_shown_are_those_to_the_first_rows(toy: Any, tmp_path: Path) -> None:
    task = CausalLM(prompt="{text}", response="{label}", max_length=24)

    found = evaluated(toy, tmp_path, samples=3, allowed=2, objective=task)

    assert [(sample.text, sample.expected) for sample in found.examples] == [("text 0", "no"), ("text 1", "yes")]


def test_with_mean_training_losses_no_loss_of_a_step_leaves_the_site(toy: Any, tmp_path: Path) -> None:
    seen: list[Progress] = []
    policy = DataPolicy(training_losses=TrainingLosses.MEAN)
    asked = a_training_task(toy("llama"), tmp_path, {Q0: 2}, policy=policy)
    runtime = make_runtime(tmp_path / "scratch")
    runtime.write_progress = seen.append

    found = train.run(asked, runtime)
    by_step = train.run(asked.model_copy(update={"policy": DataPolicy()}), make_runtime(tmp_path / "other"))

    assert found.losses == ()
    assert found.train_loss == by_step.train_loss
    assert len(by_step.losses) == found.steps
    assert [line.loss for line in seen if line.phase == "train"] == [None] * found.steps


def test_with_mean_training_losses_a_checkpoint_has_their_mean_alone(toy: Any, tmp_path: Path) -> None:
    checkpoint = (tmp_path / "checkpoint.safetensors").as_uri()
    losses = {}
    for policy in (DataPolicy(), DataPolicy(training_losses=TrainingLosses.MEAN)):
        asked = a_training_task(toy("llama"), tmp_path, {Q0: 2}, policy=policy, checkpoint_write=checkpoint)
        runtime = make_runtime(tmp_path / policy.training_losses)
        steps: list[Progress] = []
        runtime.write_progress = steps.append
        runtime.stop_requested = lambda steps=steps: len([one for one in steps if one.phase == "train"]) >= 3  # type: ignore[misc]
        with pytest.raises(Terminated):
            train.run(asked, runtime)
        losses[policy.training_losses] = losses_in(tmp_path / "checkpoint.safetensors")

    assert len(set(losses[TrainingLosses.BY_STEP])) == 3
    assert losses[TrainingLosses.MEAN] == [pytest.approx(sum(losses[TrainingLosses.BY_STEP]) / 3)] * 3


def losses_in(path: Path) -> list[float]:
    """The losses that a checkpoint holds."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found = next(json.loads(value) for value in header["__metadata__"].values() if '"losses"' in value)
    losses: list[float] = found["losses"]
    return losses


def write_rows(folder: Path, labels: list[str]) -> Data:
    for file in ("train", "validation"):
        rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl"))


def a_profile_task(toy: Any, folder: Path, policy: DataPolicy, labels: list[str]) -> ProfileTask:
    return ProfileTask(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        model=Model(source=toy("bert").as_uri()),
        result="file:///nowhere",
        objective=CLASSES,
        data=write_rows(folder, labels),
        policy=policy,
        bits=(32,),
        batch_sizes=(1,),
        rank=2,
        importance="None",  # type: ignore[arg-type]
    )


def evaluated(toy: Any, folder: Path, *, samples: int, allowed: int, **changed: Any) -> EvaluateResult:
    """An evaluation of the base on eight rows, of which the run asks for `samples` and the policy shows `allowed`."""
    objective = changed.get("objective", CLASSES.model_copy(update={"labels": LABELS}))
    model = "bert" if isinstance(objective, SequenceClassification) else "llama"
    task = EvaluateTask(
        run=RunRef(namespace="n", name="r", uid="u"),
        site="a",
        model=Model(source=toy(model).as_uri()),
        result="file:///nowhere",
        objective=objective,
        data=write_rows(folder, list(LABELS) * 4),
        policy=DataPolicy(max_shown_rows=allowed),
        bits=32,
        batch_size=4,
        evaluation=Evaluation(samples=samples, generations=8, max_new_tokens=4),
        seed=changed.get("seed", 0),
    )
    return evaluate.run(task, make_runtime(folder / "scratch"))
