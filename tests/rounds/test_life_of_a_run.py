"""A whole run through decide, tasks, store and aggregation; only the trainers are stand-ins."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from stand_in_runs import World, a_run, a_site
from trainer_results import a_failure, a_profile, an_evaluation, an_update, good_trainer

from fedpipe_operator import names
from fedpipe_operator.backend import JobState
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation, RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import (
    EvaluateTask,
    ExportTask,
    FailureReason,
    ProfileResult,
    ProfileTask,
    SequenceClassification,
    TrainResult,
    TrainTask,
    parse_task,
)


def test_a_run_goes_from_profile_to_export_and_succeeds(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [name.removeprefix("toy-") for name in world.backend.started] == [
        *(f"profile-site-{site}-a0" for site in "abc"),
        "dry-export-r1-a0",
        *(f"train-r1-site-{site}-a0" for site in "abc"),
        "aggregate-r1-a0",
        *(f"train-r2-site-{site}-a0" for site in "abc"),
        "aggregate-r2-a0",
        *(f"evaluate-r2-site-{site}-a0" for site in "abc"),
        "export-a0",
    ]


def test_after_its_actions_are_applied_the_same_observation_asks_for_nothing_more(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    for _ in range(60):
        world.reconcile()
        while world.reconcile().actions:  # commits make the next stage due at once; each is asked for once
            pass
        again = world.reconcile()

        assert again.actions == ()
        assert again.events == ()
        if not world.backend.active_jobs():
            break
        world.backend.work(world.backend.active_jobs()[0])
    assert "Complete" in world.conditions()


@pytest.mark.parametrize("seed", range(5))
def test_an_operator_restarted_at_every_reconcile_ends_with_the_same_bytes(tmp_path: Path, seed: int) -> None:
    undisturbed, disturbed = World(a_run(), tmp_path / "one"), World(a_run(), tmp_path / "two")
    undisturbed.settle()

    disturbed.settle_with_restarts(seed)

    assert disturbed.final_adapter() == undisturbed.final_adapter()
    assert disturbed.backend.started == list(dict.fromkeys(disturbed.backend.started))


def test_a_status_has_figures_for_people_and_the_store_has_all_digits(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        world.now += 1.23456  # seven times between plan and commit: the dry export, and three sites evaluate the base and train
        return good_trainer(task, folder)

    world = World(a_run(planning={"ranks": [1, 2]}), tmp_path, trainer)
    world.settle()

    entry = world.run.resource.status.history[0]
    energy = max(required_object(world.store, names.round_commit(1), RoundCommit).truncated_energy.values())
    assert entry.truncated_energy == round(energy, 4) != energy
    assert entry.seconds == 8.6


def test_a_status_lost_with_the_operator_is_derived_again_from_the_store(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.settle()
    before = world.run.resource.status

    world.run = a_run()
    world.backend.jobs.clear()
    world.restart()
    world.settle()

    assert world.run.resource.status.history == before.history
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.backend.started.count("toy-train-r1-site-a-a0") == 1


def test_a_killed_trainer_is_tried_again_and_then_counted_out(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        killed = isinstance(task, TrainTask) and task.site == "site-b"
        return None if killed else good_trainer(task, folder)

    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 1}), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert [name for name in world.backend.started if "train-r1-site-b" in name] == ["toy-train-r1-site-b-a0", "toy-train-r1-site-b-a1"]
    assert world.run.resource.status.history[0].updates == "2/3"
    assert world.run.resource.status.history[0].left_out["site-b"] == "Killed: the process was killed"


def test_a_failure_that_no_second_attempt_can_mend_is_final(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, TrainTask) and task.site == "site-c":
            return a_failure(TrainResult, task, FailureReason.BAD_DATA, "train.jsonl is gone")
        return good_trainer(task, folder)

    world = World(a_run(sites={"quorum": 1.0}), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Failed"] == "QuorumOutOfReach"
    assert "site-c: BadData: train.jsonl is gone" in world.message("Failed")
    assert "toy-train-r1-site-c-a1" not in world.backend.started


def test_an_interrupted_attempt_does_not_use_up_the_attempts(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, TrainTask) and task.site == "site-a" and task.attempt < 3:
            return a_failure(TrainResult, task, FailureReason.TERMINATED, "SIGTERM")
        return good_trainer(task, folder)

    world = World(a_run(rounds={"count": 1, "attempts": 1}), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert "toy-train-r1-site-a-a3" in world.backend.started


def test_a_refused_update_costs_its_site_the_round_and_nothing_else(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, TrainTask) and task.site == "site-b" and task.round == 1:
            return an_update(task, folder, fingerprint="0ff" + "0" * 61)
        return good_trainer(task, folder)

    world = World(a_run(sites={"quorum": 0.6}), tmp_path, trainer)
    world.settle()

    first, second = world.run.resource.status.history
    assert first.left_out["site-b"].startswith("WrongBase")
    assert second.updates == "3/3"
    assert not any("train-r1-site-b-a1" in name for name in world.backend.started)


def test_refusals_that_break_the_quorum_fail_the_run_with_their_reasons(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, TrainTask) and task.site != "site-a":
            return an_update(task, folder, samples=0)
        return good_trainer(task, folder)

    world = World(a_run(), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Failed"] == "QuorumOutOfReach"
    assert "site-b: WrongSteps" in world.message("Failed")
    assert "site-c: WrongSteps" in world.message("Failed")


def test_a_site_that_cannot_hold_the_model_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    fleet = [a_site("big-1"), a_site("big-2"), a_site("big-3"), a_site("small", capacity={"memory": "64Mi"})]
    world = World(a_run(fleet, sites={"quorum": 0.75}), tmp_path)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert "small" in world.run.resource.status.excluded
    assert not any("train" in name and "small" in name for name in world.backend.started)


def test_sites_that_cannot_hold_the_model_break_the_quorum_with_the_list(tmp_path: Path) -> None:
    fleet = [a_site("big"), a_site("small-1", capacity={"memory": "64Mi"}), a_site("small-2", capacity={"memory": "64Mi"})]
    world = World(a_run(fleet), tmp_path)
    world.settle()

    assert world.conditions()["Failed"] == "QuorumOutOfReach"
    assert "small-1" in world.message("Failed")
    assert "small-2" in world.message("Failed")


def test_at_the_deadline_the_round_goes_on_with_the_quorum_and_ends_the_late_job(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 1, "deadline": "10m"}), tmp_path)
    world.work_until("train-r1")
    world.reconcile()
    for name in world.backend.active_jobs():
        if "site-c" not in name:
            world.backend.work(name)

    world.now += 599
    world.reconcile()
    before = list(world.backend.discarded)
    world.now += 1
    world.settle()

    assert before == []
    assert world.backend.discarded == ["toy-train-r1-site-c-a0"]
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_deadline_does_not_count_the_time_the_run_was_stopped(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 1, "deadline": "10m"}), tmp_path)
    world.work_until("train-r1")
    world.backend.work("toy-train-r1-site-a-a0")
    for name in world.backend.active_jobs():
        world.backend.discard(name)

    world.now += 86400
    world.restart()
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.history[0].updates == "3/3"


def test_suspend_ends_the_jobs_and_resume_goes_on_in_the_same_round(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    running = world.work_until("train-r2")

    suspended = world.run.spec.model_copy(update={"suspend": True})
    resumed = world.run.spec
    world.run = type(world.run)(world.run.resource.model_copy(update={"spec": suspended}), world.run.sites)
    world.reconcile()

    assert world.backend.discarded == running
    assert world.conditions()["Suspended"] == "SuspendedBySpec"
    assert "set spec.suspend to false" in world.message("Suspended")
    assert all(event.message for event in world.events)
    assert world.reconcile().actions == ()

    world.run = type(world.run)(world.run.resource.model_copy(update={"spec": resumed}), world.run.sites)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert sum("train-r1" in name for name in world.backend.started) == 3


def test_the_run_ends_as_soon_as_the_target_is_reached(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 9, "target": {"metric": "accuracy", "value": 0.3}}), tmp_path)
    world.settle()

    assert world.conditions()["Complete"] == "TargetReached"
    assert len(world.run.resource.status.history) == 3


def test_patience_ends_the_run_and_the_best_round_is_exported(tmp_path: Path) -> None:
    accuracy = {0: 0.1, 1: 0.3, 2: 0.5, 3: 0.4, 4: 0.45}
    exported: list[int] = []

    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, EvaluateTask):
            return an_evaluation(task, metrics={"accuracy": accuracy[task.round]})
        if isinstance(task, ExportTask):
            exported.append(task.round)
        return good_trainer(task, folder)

    world = World(a_run(rounds={"count": 9, "patience": 2}), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Complete"] == "PatienceExhausted"
    assert len(world.run.resource.status.history) == 4
    assert exported == [2]


def test_only_the_chosen_sites_of_a_round_train_and_the_choice_changes_with_the_round(tmp_path: Path) -> None:
    world = World(a_run(8, sites={"perRound": 3}, rounds={"count": 6}), tmp_path)
    world.settle()

    chosen = [
        {name.split("-r")[1][2:].removesuffix("-a0") for name in world.backend.started if f"train-r{r}-" in name} for r in range(1, 7)
    ]
    assert all(len(sites) == 3 for sites in chosen)
    assert len({frozenset(sites) for sites in chosen}) > 1


def test_a_run_without_sites_waits_for_one_and_fails_when_its_time_is_up(tmp_path: Path) -> None:
    world = World(a_run(0), tmp_path)
    world.reconcile()
    assert world.conditions()["Progressing"] == "NoSites"

    world.now += 600
    world.reconcile()
    assert world.conditions()["Failed"] == "NoSites"


def test_a_run_that_was_there_before_its_sites_begins_as_soon_as_they_come(tmp_path: Path) -> None:
    world = World(a_run(0), tmp_path)
    world.reconcile()
    world.run = replace(world.run, sites=a_run(3).sites)

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_site_whose_profile_fails_is_left_out_with_the_trainers_words(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == "site-a":
            return a_failure(ProfileResult, task, FailureReason.BAD_MODEL, "no tokenizer.json in the model's folder")
        return good_trainer(task, folder)

    world = World(a_run(sites={"quorum": 0.6}), tmp_path, trainer)
    world.settle()

    assert world.run.resource.status.excluded["site-a"] == "BadModel: no tokenizer.json in the model's folder"
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_site_whose_profile_is_killed_for_its_memory_is_told_which_field_gives_it_more(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.6}), tmp_path)
    world.reconcile()
    for attempt in (0, 1):
        job = f"toy-profile-site-a-a{attempt}"
        world.backend.jobs[job] = replace(
            world.backend.jobs[job], state=JobState.FAILED, exit_code=137, reason="OutOfMemory", message="the kernel killed it"
        )
        world.reconcile()
    world.settle()

    assert world.run.resource.status.excluded["site-a"] == (
        "OutOfMemory: the kernel killed it; give the site more memory in spec.capacity.memory, or the run a smaller base model or a lower "
        "task.maxLength"
    )


def test_a_site_on_another_base_is_left_out_by_name(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == "site-b":
            return a_profile(task, fingerprint="f" * 64)
        return good_trainer(task, folder)

    world = World(a_run(sites={"quorum": 0.6}), tmp_path, trainer)
    world.settle()

    assert "WrongBase" in world.run.resource.status.excluded["site-b"]


def test_a_site_that_tells_other_facts_about_the_common_base_is_left_out_and_stops_nobody(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == "site-a":
            profile = a_profile(task)
            assert profile.base is not None
            return a_profile(task, base=profile.base.model_copy(update={"weights": profile.base.weights[1:]}))
        return good_trainer(task, folder)

    world = World(a_run(sites={"quorum": 0.6}), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.excluded["site-a"].startswith("WrongBase: its profile has other facts")


UNDECLARED: Final = {"type": "SequenceClassification"}


def a_trainer_of(labels: dict[str, tuple[str, ...]], dropped: dict[str, int] | None = None) -> Any:
    """A trainer whose sites have these labels, and drop so many rows, in training and in evaluation."""

    def trainer(task: Any, folder: Path) -> Any:
        rows = {"dropped_rows": (dropped or {}).get(task.site, 0)}
        if isinstance(task, ProfileTask):
            return a_profile(task, labels=labels[task.site])
        if isinstance(task, TrainTask):
            return an_update(task, folder, **rows)
        return an_evaluation(task, **rows) if isinstance(task, EvaluateTask) else good_trainer(task, folder)

    return trainer


def test_labels_that_the_spec_does_not_declare_are_learned_if_two_sites_have_them(tmp_path: Path) -> None:
    found = {"site-a": ("art", "politics", "sports"), "site-b": ("politics", "sports", "war"), "site-c": ("art", "food", "travel")}
    world = World(a_run(task=UNDECLARED), tmp_path, a_trainer_of(found))
    world.settle()

    plan = RoundPlan.model_validate_json(world.store.read(names.round_plan(1)) or b"")
    assert plan.labels == ("art", "politics", "sports")
    assert plan.head == {"base_model.model.classifier.weight": (3, 8)}
    tasks = [parse_task(text) for name, text in world.backend.tasks.items() if "train" in name or "evaluate" in name]
    objective = SequenceClassification(labels=plan.labels, drops_other_labels=True)
    assert tasks
    assert {task.objective for task in tasks} == {objective}  # type: ignore[union-attr]
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_declared_labels_are_the_run_s_whatever_sites_have_and_a_row_with_another_is_no_reason_to_drop_it(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path, a_trainer_of(dict.fromkeys(("site-a", "site-b", "site-c"), ("a",))))
    world.work_until("train-r1")

    task = parse_task(world.backend.tasks["toy-train-r1-site-a-a0"])
    assert task.objective == SequenceClassification(labels=("a", "b", "c"), max_length=16)  # type: ignore[union-attr]


def test_dropped_rows_are_counted_in_plan_status_and_event_without_any_label(tmp_path: Path) -> None:
    common = ("art", "politics", "sports")
    found = {"site-a": common, "site-b": (*common, "secret"), "site-c": common}
    world = World(a_run(task=UNDECLARED), tmp_path, a_trainer_of(found, dropped={"site-b": 4}))
    world.settle()

    status = world.run.resource.status
    told = {plan.site: plan.why[-1] for plan in status.plans}
    assert told["site-b"].startswith("it drops the rows of 1 of its 4 labels, which fewer than two sites have: declare task.labels")
    assert not any("drops" in told[site] for site in ("site-a", "site-c"))
    assert [entry.dropped_rows for entry in status.history] == [{"site-b": 4}] * 2
    events = [event.message for event in world.events if event.reason == "RoundCompleted"]
    sentence = "site-b: 4 training rows dropped, whose labels fewer than two sites have: declare task.labels in a new run to keep them"
    assert [sentence in message for message in events] == [True, False], "only when the number is news"
    evaluation = required_object(world.store, names.round_evaluation(1), RoundEvaluation)
    assert {site: one.dropped_rows for site, one in evaluation.sites.items()} == {"site-a": 0, "site-b": 4, "site-c": 0}
    assert "secret" not in status.model_dump_json() + "".join(event.message for event in world.events)


def test_dropped_rows_do_not_count_for_the_weight_of_their_site(tmp_path: Path) -> None:
    found = dict.fromkeys(("site-a", "site-b", "site-c"), ("art", "politics", "sports"))
    world = World(a_run(task=UNDECLARED, rounds={"count": 1}), tmp_path, a_trainer_of(found, dropped={"site-b": 60}))
    world.settle()

    commit = required_object(world.store, names.round_commit(1), RoundCommit)
    assert {one.site: (one.samples, one.dropped_rows) for one in commit.contributions} == {
        "site-a": (100, 0),
        "site-b": (40, 60),
        "site-c": (100, 0),
    }


def test_a_run_whose_sites_have_fewer_than_two_labels_in_common_fails_before_any_training_and_says_what_to_do(tmp_path: Path) -> None:
    found = {"site-a": ("art", "war"), "site-b": ("art", "food"), "site-c": ("travel",)}
    world = World(a_run(task=UNDECLARED), tmp_path, a_trainer_of(found))
    world.settle()

    assert world.conditions()["Failed"] == "TooFewLabels"
    assert world.message("Failed").endswith("declare all labels in spec.task.labels of a new run, or give the sites the same labels")
    assert not [name for name in world.backend.started if "train" in name]


def test_a_run_with_too_few_labels_names_the_sites_whose_labels_are_not_known(tmp_path: Path) -> None:
    """Theirs may be those that the others lack."""

    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == "site-c":
            return a_failure(ProfileResult, task, FailureReason.BAD_MODEL, "no tokenizer.json in the model's folder")
        return a_trainer_of({"site-a": ("art", "war"), "site-b": ("art", "food")})(task, folder)

    world = World(a_run(task=UNDECLARED, sites={"quorum": 0.6}), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Failed"] == "TooFewLabels"
    assert world.message("Failed").endswith("the same labels; site-c: BadModel: no tokenizer.json in the model's folder")


def test_a_site_none_of_whose_labels_another_has_takes_no_part(tmp_path: Path) -> None:
    common = ("art", "politics", "sports")
    found = {"site-a": common, "site-b": common, "site-c": ("food", "travel")}
    world = World(a_run(task=UNDECLARED, sites={"quorum": 0.6}), tmp_path, a_trainer_of(found))
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.excluded.keys() == {"site-c"}
    assert world.run.resource.status.excluded["site-c"].startswith("NoLabels: each of its labels is at fewer than two sites")
    assert not [name for name in world.backend.started if "train" in name and "site-c" in name]


def test_a_round_that_another_operator_committed_first_stays_as_it_was_committed(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 1}), tmp_path)
    world.work_until("aggregate")
    task = world.backend.tasks["toy-aggregate-r1-a0"]
    world.backend.work("toy-aggregate-r1-a0")
    committed = RoundCommit.model_validate_json(world.store.read(names.round_commit(1)) or b"")

    world.backend.discard("toy-aggregate-r1-a0")
    world.backend.tasks["again"] = task
    world.backend.start(next(iter(world.backend.jobs.values())).job, task, resources=None)  # type: ignore[arg-type] # the stand-in ignores them
    world.settle()

    assert RoundCommit.model_validate_json(world.store.read(names.round_commit(1)) or b"") == committed
    assert len(committed.contributions) == 3


def test_an_evaluation_says_what_each_sites_update_did_to_the_loss(tmp_path: Path) -> None:
    """The stand-ins' loss is 2 / (1 + round)."""
    world = World(a_run(), tmp_path)
    world.settle()

    base, first, second = (required_object(world.store, names.round_evaluation(round_), RoundEvaluation) for round_ in range(3))
    assert base.first_order_estimates == {}
    assert set(first.first_order_estimates) == {"site-a", "site-b", "site-c"}
    for evaluation, change in ((first, 1.0 - 2.0), (second, 2 / 3 - 1.0)):
        assert sum(one.change for one in evaluation.first_order_estimates.values()) == pytest.approx(change)


def test_each_finished_round_is_recorded_once(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 3}), tmp_path)
    world.settle()
    world.restart()
    world.settle()

    assert [event.message.split(":")[0] for event in world.events if event.reason == "RoundCompleted"] == ["round 1", "round 2", "round 3"]


@pytest.mark.parametrize("method", ["Exact", "ZeroPad", "FedIT"])
def test_a_given_rank_above_planning_ranks_is_obeyed_and_kept_in_the_global_adapter(tmp_path: Path, method: str) -> None:
    planning = {"mode": "Manual", "bits": [16], "ranks": [2], "batchSizes": [2], "plans": [{"bits": 16, "rank": 4, "steps": 3}]}
    world = World(a_run(planning=planning, aggregation={"method": method}), tmp_path)

    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert set(required_object(world.store, names.round_commit(2), RoundCommit).ranks.values()) == {4}


def test_the_forecast_of_what_is_read_is_the_size_of_the_last_rounds_adapter_and_nothing_in_round_1(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)

    world.settle()

    size = required_object(world.store, names.round_commit(1), RoundCommit).adapter.size
    plans = [required_object(world.store, names.round_plan(round_), RoundPlan).plans for round_ in (1, 2)]
    assert [{plan.forecast.download_bytes for plan in one.values()} for one in plans] == [{0}, {size}]
