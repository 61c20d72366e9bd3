"""A run as a session of this machine, and the comparison after it: each site alone, with the steps it took in all rounds."""

from pathlib import Path
from typing import Any

import pytest
from stand_in_runs import Machine, a_run
from trainer_results import a_failure, an_evaluation, good_trainer

from fedpipe_operator import names
from fedpipe_operator.api import FineTuneStatus, seconds
from fedpipe_operator.errors import UserError
from fedpipe_operator.local.session import Session, compare, sessions_alone
from fedpipe_operator.report import closing_rows, comparison
from fedpipe_operator.rounds import Event, Run
from fedpipe_operator.rounds.records import Comparison, RoundCommit, RoundEvaluation, RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import EvaluateTask, FailureReason, ProfileResult, ProfileTask, TrainResult, TrainTask

ACCURACY = {"toy": {0: 0.1, 1: 0.6, 2: 0.5}, "toy-alone-site-a": {1: 0.2}, "toy-alone-site-b": {1: 0.4}, "toy-alone-site-c": {1: 0.3}}
"""By run and round; the run's second round is worse than its first."""


def judged(task: Any, folder: Path) -> Any:
    """A trainer by whose evaluations every model has an accuracy, and a loss, of its own."""
    if isinstance(task, EvaluateTask):
        accuracy = ACCURACY[task.run.name][task.round]
        return an_evaluation(task, metrics={"accuracy": accuracy}, loss=1 - accuracy)
    return good_trainer(task, folder)


def stored(session: Session, key: str, kind: type[Any]) -> Any:
    return required_object(session.store, key, kind)


def test_a_session_keeps_its_status_and_passes_on_status_and_events(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    statuses: list[FineTuneStatus] = []
    events: list[Event] = []
    session = machine.session(on_status=statuses.append, on_event=events.append)
    assert not session.over

    machine.drive({"run": session})

    assert session.over
    assert session.failure is None
    assert session.run.resource.status == statuses[-1]
    assert [event.reason for event in events].count("RoundCompleted") == 2


def test_a_session_that_failed_says_why(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask):
            return a_failure(ProfileResult, task, FailureReason.BAD_MODEL, "no tokenizer.json")
        return good_trainer(task, folder)

    session = Machine(tmp_path, trainer=trainer).finished()

    assert session.failure is not None
    assert session.failure.startswith("QuorumOutOfReach: round 1 needs 3 of 3 sites")
    assert "site-a: BadModel: no tokenizer.json" in session.failure


def test_every_site_alone_trains_by_itself_as_long_as_in_all_rounds_and_everyone_evaluates_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    parent = machine.finished()
    before = len(machine.backend.started)

    alone = sessions_alone(parent)
    machine.drive(alone)

    assert list(alone) == ["site-a", "site-b", "site-c"]
    assert sorted(machine.backend.started[before:]) == sorted(
        name
        for site in alone
        for name in (
            f"toy-alone-{site}-train-r1-{site}-a0",
            f"toy-alone-{site}-aggregate-r1-a0",
            *(f"toy-alone-{site}-evaluate-r1-{other}-a0" for other in alone),
        )
    )
    once = stored(parent, names.round_plan(1), RoundPlan).plans["site-b"]
    task = TrainTask.model_validate_json(machine.backend.tasks["toy-alone-site-b-train-r1-site-b-a0"])
    assert task.plan == once.model_copy(update={"steps": 2 * once.steps})
    assert task.deadline_seconds == 2 * seconds(parent.run.spec.rounds.deadline)
    assert task.global_adapter is None


def test_a_model_of_a_site_alone_is_that_sites_update(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    alone = sessions_alone(machine.finished())
    machine.drive(alone)

    commit = stored(alone["site-c"], names.round_commit(1), RoundCommit)

    assert [(one.site, one.share) for one in commit.contributions] == [("site-c", 1.0)]
    assert not alone["site-c"].run.resource.status.history[0].left_out


def test_a_site_that_gave_one_update_of_two_gets_the_steps_of_one_and_a_site_that_gave_none_is_not_compared(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        gone = isinstance(task, TrainTask) and (task.site == "site-c" or (task.site == "site-b" and task.round == 2))
        return a_failure(TrainResult, task, FailureReason.BAD_DATA, "gone") if gone else good_trainer(task, folder)

    machine = Machine(tmp_path, a_run(sites={"quorum": 0.3}), trainer)
    parent = machine.finished()

    alone = sessions_alone(parent)

    steps = {site: stored(session, names.round_plan(1), RoundPlan).plans[site].steps for site, session in alone.items()}
    once = {site: plan.steps for site, plan in stored(parent, names.round_plan(1), RoundPlan).plans.items()}
    assert steps == {"site-a": 2 * once["site-a"], "site-b": once["site-b"]}


def test_a_comparison_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    parent = machine.finished()
    alone = sessions_alone(parent)
    machine.drive({"site-a": alone["site-a"]})
    started = len(machine.backend.started)
    machine.backend.jobs.clear()

    again = sessions_alone(parent)
    machine.drive(again)

    assert machine.backend.started[started:]
    assert not [name for name in machine.backend.started[started:] if "alone-site-a" in name]


def test_base_sites_alone_and_the_best_round_are_put_side_by_side_each_with_its_own_result(tmp_path: Path) -> None:
    machine = Machine(tmp_path, trainer=judged)
    parent = machine.finished()
    alone = sessions_alone(parent)
    machine.drive(alone)

    made = compare(parent, alone)

    assert made.federated.round == 1, "the second round was worse, and is not what is exported"
    assert [(row.label, row.value, row.best) for row in closing_rows(made, "accuracy")] == [
        ("base model, untouched", 0.1, False),
        ("site-a alone", 0.2, False),
        ("site-b alone", 0.4, False),
        ("site-c alone", 0.3, False),
        ("federated", 0.6, True),
    ]
    assert stored(parent, names.COMPARISON, Comparison) == made


def test_where_lower_is_better_the_round_and_the_row_with_the_least_are_the_best(tmp_path: Path) -> None:
    target = {"metric": "loss", "value": 0.01}
    machine = Machine(tmp_path, a_run(rounds={"count": 2, "target": target}), judged)
    parent = machine.finished()
    alone = sessions_alone(parent)
    machine.drive(alone)

    made = compare(parent, alone)

    assert made.federated.round == 1
    assert [(row.label, row.best) for row in closing_rows(made, "loss") if row.best] == [("federated", True)]


def test_a_site_alone_that_failed_has_no_row(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        diverged = isinstance(task, TrainTask) and task.run.name == "toy-alone-site-b"
        return a_failure(TrainResult, task, FailureReason.DIVERGED, "step 9") if diverged else good_trainer(task, folder)

    machine = Machine(tmp_path, trainer=trainer)
    parent = machine.finished()
    alone = sessions_alone(parent)
    machine.drive(alone)

    assert list(compare(parent, alone).alone) == ["site-a", "site-c"]


def test_a_store_that_lost_a_commit_is_told_by_its_key(tmp_path: Path) -> None:
    parent = Machine(tmp_path).finished()
    parent.store.delete(names.round_commit(2))

    with pytest.raises(UserError, match=f"ObjectMissing: {names.round_commit(2)}"):
        sessions_alone(parent)


def test_a_run_alone_asks_for_one_round_without_target_patience_or_export() -> None:
    run = a_run(rounds={"count": 7, "deadline": "1m30s", "target": {"metric": "accuracy", "value": 0.9}, "patience": 3})

    child = comparison.alone(run, "site-a", 4)

    rounds = child.spec.rounds
    assert (rounds.count, rounds.target, rounds.patience, seconds(rounds.deadline)) == (1, None, None, 360.0)
    assert (child.spec.export.adapter, child.spec.export.merged) == (False, False)
    assert child.sites == run.sites
    assert child.spec.training == run.spec.training


def test_the_names_of_runs_alone_stay_within_bounds_and_apart() -> None:
    run = a_run()
    long = run.resource.metadata.model_copy(update={"name": "x" * 63})
    run = Run(run.resource.model_copy(update={"metadata": long}), run.sites)

    names_ = {comparison.alone(run, site, 1).name for site in ("site-a", "site-b")}

    assert len(names_) == 2
    assert all(len(name) <= 63 for name in names_)


def test_a_site_counts_the_rounds_that_its_update_went_into(tmp_path: Path) -> None:
    parent = Machine(tmp_path, a_run(8, sites={"perRound": 3}, rounds={"count": 4})).finished()
    commits = {round_: stored(parent, names.round_commit(round_), RoundCommit) for round_ in range(1, 5)}

    trained = {site.name: comparison.rounds_trained(site.name, commits) for site in parent.run.sites}

    chosen = [one.site for commit in commits.values() for one in commit.contributions]
    assert trained == {site.name: chosen.count(site.name) for site in parent.run.sites}
    assert sum(trained.values()) == 12


def test_the_comparison_lists_the_sites_by_name() -> None:
    results = {site: RoundEvaluation(round=1, finished_at=0.0) for site in ("b", "c", "a")}

    made = comparison.compared(base=results["a"], federated=results["b"], alone_results=results)

    assert list(made.alone) == ["a", "b", "c"]
