"""A run as a session on this machine, and the comparison with local-only baselines, which take the steps of all rounds."""

from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import Machine, a_run
from trainer_results import a_failure, an_evaluation, good_trainer

from fedpipe_operator import names
from fedpipe_operator.api import FineTuneStatus, parse_duration
from fedpipe_operator.errors import UserError
from fedpipe_operator.local.session import Session, compare, local_only_sessions
from fedpipe_operator.report import comparison, comparison_rows
from fedpipe_operator.rounds import Event, Run
from fedpipe_operator.rounds.records import Comparison, RoundCommit, RoundEvaluation, RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import EvaluateTask, FailureReason, ProfileResult, ProfileTask, TrainResult, TrainTask

ACCURACY = {
    "toy": {0: 0.1, 1: 0.6, 2: 0.5},
    "toy-local-only-site-a": {1: 0.2},
    "toy-local-only-site-b": {1: 0.4},
    "toy-local-only-site-c": {1: 0.3},
}
"""By run and round. The second round of the run is worse than the first."""


def distinct_results(task: Any, folder: Path) -> Any:
    """A trainer whose evaluations give every model a different accuracy and loss."""
    if isinstance(task, EvaluateTask):
        accuracy = ACCURACY[task.run.name][task.round]
        return an_evaluation(task, metrics={"accuracy": accuracy}, loss=1 - accuracy)
    return good_trainer(task, folder)


def read(session: Session, key: str, kind: type[Any]) -> Any:
    return required_object(session.store, key, kind)


def test_a_session_keeps_its_status_and_passes_on_status_and_events(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    statuses: list[FineTuneStatus] = []
    events: list[Event] = []
    session = machine.session(on_status=statuses.append, on_event=events.append)
    assert not session.is_finished

    machine.drive({"run": session})

    assert session.is_finished
    assert session.failure is None
    assert session.run.resource.status == statuses[-1]
    assert [event.reason for event in events].count("RoundCompleted") == 2


def test_a_failed_session_has_a_message(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask):
            return a_failure(ProfileResult, task, FailureReason.BAD_MODEL, "no tokenizer.json")
        return good_trainer(task, folder)

    session = Machine(tmp_path, trainer=trainer).finished()

    assert session.failure is not None
    assert session.failure.startswith("QuorumOutOfReach: round 1 needs 3 of 3 sites")
    assert "site-a: BadModel: no tokenizer.json" in session.failure


def test_a_baseline_trains_at_its_site_as_long_as_in_all_rounds_and_all_sites_evaluate_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    parent = machine.finished()
    before = len(machine.backend.started)

    baselines = local_only_sessions(parent)
    machine.drive(baselines)

    assert list(baselines) == ["site-a", "site-b", "site-c"]
    assert sorted(machine.backend.started[before:]) == sorted(
        name
        for site in baselines
        for name in (
            f"toy-local-only-{site}-train-r1-{site}-a0",
            f"toy-local-only-{site}-aggregate-r1-a0",
            *(f"toy-local-only-{site}-evaluate-r1-{other}-a0" for other in baselines),
        )
    )
    once = read(parent, names.round_plan(1), RoundPlan).plans["site-b"]
    task = TrainTask.model_validate_json(machine.backend.tasks["toy-local-only-site-b-train-r1-site-b-a0"])
    assert task.plan == once.model_copy(update={"steps": 2 * once.steps})
    assert task.deadline_seconds == 2 * parse_duration(parent.run.spec.rounds.deadline)
    assert task.global_adapter is None


def test_the_model_of_a_baseline_is_the_update_of_its_site(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    baselines = local_only_sessions(machine.finished())
    machine.drive(baselines)

    commit = read(baselines["site-c"], names.round_commit(1), RoundCommit)

    assert [(one.site, one.share) for one in commit.contributions] == [("site-c", 1.0)]
    assert not baselines["site-c"].run.resource.status.history[0].left_out


def test_a_run_whose_rule_needs_many_updates_has_baselines_of_one_update(tmp_path: Path) -> None:
    machine = Machine(tmp_path, a_run(5, aggregation={"rule": "Krum"}, rounds={"count": 1}))
    baselines = local_only_sessions(machine.finished())
    machine.drive(baselines)

    assert {site: session.failure for site, session in baselines.items()} == dict.fromkeys(baselines)
    assert read(baselines["site-a"], names.round_commit(1), RoundCommit).rule == "Mean"


def test_a_site_with_one_update_of_two_gets_the_steps_of_one_and_a_site_without_updates_gets_no_baseline(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        fails = isinstance(task, TrainTask) and (task.site == "site-c" or (task.site == "site-b" and task.round == 2))
        return a_failure(TrainResult, task, FailureReason.BAD_DATA, "no data") if fails else good_trainer(task, folder)

    machine = Machine(tmp_path, a_run(sites={"quorum": 0.3}), trainer)
    parent = machine.finished()

    baselines = local_only_sessions(parent)

    steps = {site: read(session, names.round_plan(1), RoundPlan).plans[site].steps for site, session in baselines.items()}
    once = {site: plan.steps for site, plan in read(parent, names.round_plan(1), RoundPlan).plans.items()}
    assert steps == {"site-a": 2 * once["site-a"], "site-b": once["site-b"]}


def test_a_comparison_that_was_stopped_is_resumed(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    parent = machine.finished()
    baselines = local_only_sessions(parent)
    machine.drive({"site-a": baselines["site-a"]})
    started = len(machine.backend.started)
    machine.backend.jobs.clear()

    resumed = local_only_sessions(parent)
    machine.drive(resumed)

    assert machine.backend.started[started:]
    assert not [name for name in machine.backend.started[started:] if "local-only-site-a" in name]


def test_the_comparison_has_the_results_of_the_base_the_baselines_and_the_best_round(tmp_path: Path) -> None:
    machine = Machine(tmp_path, trainer=distinct_results)
    parent = machine.finished()
    baselines = local_only_sessions(parent)
    machine.drive(baselines)

    result = compare(parent, baselines)

    assert result.federated.round == 1, "the second round was worse, so the first is exported"
    assert [(row.label, row.value, row.best) for row in comparison_rows(result, "accuracy")] == [
        ("base model, untouched", 0.1, False),
        ("site-a, local only", 0.2, False),
        ("site-b, local only", 0.4, False),
        ("site-c, local only", 0.3, False),
        ("federated", 0.6, True),
    ]
    assert read(parent, names.COMPARISON, Comparison) == result


def test_where_lower_is_better_the_round_and_the_row_with_the_lowest_value_are_the_best(tmp_path: Path) -> None:
    target = {"metric": "loss", "value": 0.01}
    machine = Machine(tmp_path, a_run(rounds={"count": 2, "target": target}), distinct_results)
    parent = machine.finished()
    baselines = local_only_sessions(parent)
    machine.drive(baselines)

    result = compare(parent, baselines)

    assert result.federated.round == 1
    assert [(row.label, row.best) for row in comparison_rows(result, "loss") if row.best] == [("federated", True)]


def test_a_baseline_that_failed_has_no_row(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        diverged = isinstance(task, TrainTask) and task.run.name == "toy-local-only-site-b"
        return a_failure(TrainResult, task, FailureReason.DIVERGED, "step 9") if diverged else good_trainer(task, folder)

    machine = Machine(tmp_path, trainer=trainer)
    parent = machine.finished()
    baselines = local_only_sessions(parent)
    machine.drive(baselines)

    assert list(compare(parent, baselines).local_only) == ["site-a", "site-c"]


def test_a_missing_commit_is_an_error_with_its_key(tmp_path: Path) -> None:
    parent = Machine(tmp_path).finished()
    parent.store.delete(names.round_commit(2))

    with pytest.raises(UserError, match=f"ObjectMissing: {names.round_commit(2)}"):
        local_only_sessions(parent)


def test_a_baseline_has_one_round_without_target_patience_or_export() -> None:
    run = a_run(rounds={"count": 7, "deadline": "1m30s", "target": {"metric": "accuracy", "value": 0.9}, "patience": 3})

    child = comparison.local_only_run(run, "site-a", 4)

    rounds = child.spec.rounds
    assert (rounds.count, rounds.target, rounds.patience, parse_duration(rounds.deadline)) == (1, None, None, 360.0)
    assert (child.spec.export.adapter, child.spec.export.merged) == (False, False)
    assert child.sites == run.sites
    assert child.spec.training == run.spec.training


def test_a_baseline_is_not_held_near_its_start_by_the_run_s_proximal_term(tmp_path: Path) -> None:
    parent = Machine(tmp_path, a_run(training={"proximalMu": 0.1})).finished()
    first = read(parent, names.round_plan(1), RoundPlan)

    child, plan = comparison.local_only_run(parent.run, "site-a", 2), comparison.local_only_plan(first, "site-a", 2)

    assert first.training is not None
    assert plan.training is not None
    assert (first.training.proximal_mu, plan.training.proximal_mu, child.spec.training.proximal_mu) == (0.1, 0.0, 0.0)
    assert plan.training.learning_rate == first.training.learning_rate


def test_the_names_of_baselines_are_distinct_and_not_too_long() -> None:
    run = a_run()
    long = run.resource.metadata.model_copy(update={"name": "x" * 63})
    run = Run(run.resource.model_copy(update={"metadata": long}), run.sites)

    names_ = {comparison.local_only_run(run, site, 1).name for site in ("site-a", "site-b")}

    assert len(names_) == 2
    assert all(len(name) <= 63 for name in names_)


def test_the_rounds_of_a_site_are_those_with_its_update(tmp_path: Path) -> None:
    parent = Machine(tmp_path, a_run(8, sites={"perRound": 3}, rounds={"count": 4})).finished()
    commits = {round_: read(parent, names.round_commit(round_), RoundCommit) for round_ in range(1, 5)}

    trained = {site.name: comparison.rounds_trained(site.name, commits) for site in parent.run.sites}

    chosen = [one.site for commit in commits.values() for one in commit.contributions]
    assert trained == {site.name: chosen.count(site.name) for site in parent.run.sites}
    assert sum(trained.values()) == 12


def test_the_comparison_lists_the_sites_by_name() -> None:
    results = {site: RoundEvaluation(round=1, finished_at=0.0) for site in ("b", "c", "a")}

    result = comparison.make_comparison(base=results["a"], federated=results["b"], local_only=results)

    assert list(result.local_only) == ["a", "b", "c"]
