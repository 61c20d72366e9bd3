"""A rule that withstands f malicious sites needs many: a run that has fewer says so before any training, and a round is never of fewer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from stand_in_runs import World, a_run, a_site
from trainer_results import a_failure, an_update, good_trainer

from fedpipe_operator import names
from fedpipe_operator.api import Reason
from fedpipe_operator.api.aggregation import AggregationSpec
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.consent import left_out, missing_for_rule_of
from fedpipe_operator.rounds.policies import out_of_reach, with_planned_rule
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import FailureReason, TrainResult, TrainTask

RULES: Final = {
    "Mean": 1,
    "Median": 1,
    "TrimmedMean": 3,
    "Krum": 5,
    "MultiKrum": 5,
}
"""How many updates each needs for one malicious site."""
ADVICE: Final = "add sites, lower aggregation.maliciousSites, or set aggregation.rule to Median or Mean"
KRUM: Final = {"rule": "Krum", "maliciousSites": 1}


def losing(*sites: str, refused: bool = False) -> Any:
    """A trainer whose trainings at these sites fail, or whose updates are refused."""

    def trainer(task: Any, folder: Path) -> Any:
        if not isinstance(task, TrainTask) or task.site not in sites:
            return good_trainer(task, folder)
        if refused:
            return an_update(task, folder, fingerprint="f" * 64)
        return a_failure(TrainResult, task, FailureReason.BAD_DATA, "no rows")

    return trainer


@pytest.mark.parametrize(("rule", "needed"), RULES.items())
def test_a_run_of_as_many_sites_as_its_rule_needs_completes_and_one_of_fewer_starts_nothing(tmp_path: Path, rule: str, needed: int) -> None:
    enough = World(a_run(needed, aggregation={"rule": rule}, rounds={"count": 1}), tmp_path / "enough")
    enough.settle()
    fewer = World(a_run(needed - 1, aggregation={"rule": rule}), tmp_path / "fewer")
    fewer.settle()

    assert enough.conditions()["Complete"] == "RoundsCompleted"
    assert fewer.backend.started == []
    assert fewer.conditions()["Progressing"] == ("NoSites" if needed == 1 else "RuleOutOfReach")


def test_a_run_of_too_few_sites_for_its_rule_says_why_and_waits_for_others(tmp_path: Path) -> None:
    world = World(a_run(4, aggregation=KRUM), tmp_path)
    world.settle()

    assert world.message("Progressing") == (
        f"aggregation.rule Krum with maliciousSites 1 needs the updates of 5 sites, and 4 can send one: {ADVICE}"
    )
    world.run = Run(world.run.resource, a_run(5).sites)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"


@pytest.mark.parametrize(("rule", "told"), [("Mean", ""), ("Median", ""), ("Krum", "; aggregation.rule Krum with maliciousSites 1 needs")])
def test_of_a_rule_for_which_any_update_is_enough_a_missed_quorum_says_nothing(rule: str, told: str) -> None:
    spec = a_run(3, aggregation={"rule": rule}).spec

    reason, message = out_of_reach(spec, matched=3, count=0, message="a, b and c failed")

    assert reason is Reason.QUORUM_OUT_OF_REACH
    assert message.startswith(f"a, b and c failed{told}")
    assert bool(told) == ("aggregation.rule" in message)


def test_a_run_of_too_few_sites_for_its_rule_fails_at_the_deadline(tmp_path: Path) -> None:
    world = World(a_run(4, aggregation=KRUM), tmp_path)
    world.settle()
    world.now += 601
    world.settle()

    assert world.conditions()["Failed"] == "RuleOutOfReach"
    assert world.backend.started == []


def test_sites_that_their_policies_leave_out_do_not_count_and_are_named() -> None:
    fleet = [a_site("forbids", policy={"runs": {"names": []}}), *a_run(4).sites]
    run = a_run(fleet, aggregation=KRUM)

    assert "4 can send one" in missing_for_rule_of(run, left_out(run))
    assert missing_for_rule_of(run, left_out(run)).endswith(
        "forbids: PolicyDenied: policy.runs does not select the run toy, by its name or its labels"
    )


def test_a_site_that_cannot_hold_the_model_leaves_too_few_for_the_rule_before_any_training(tmp_path: Path) -> None:
    fleet = [a_site("small", capacity={"memory": "64Mi"}), *a_run(4).sites]
    world = World(a_run(fleet, aggregation=KRUM, sites={"quorum": 0.5}), tmp_path)
    world.settle()

    assert world.conditions()["Failed"] == "RuleOutOfReach"
    assert world.message("Failed").startswith("round 1 needs 5 of 5 sites, and these cannot take part: small: ")
    assert world.message("Failed").endswith(f"needs the updates of 5 sites, and 4 can send one: {ADVICE}")
    assert not [name for name in world.backend.started if "train" in name]


def test_a_round_waits_for_as_many_updates_as_its_rule_needs_whatever_the_quorum(tmp_path: Path) -> None:
    world = World(a_run(6, aggregation=KRUM, sites={"quorum": 0.3}, rounds={"count": 1}), tmp_path, losing("site-a"))
    world.settle()

    assert required_object(world.store, names.round_plan(1), RoundPlan).needed == 5
    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert world.run.resource.status.history[0].updates == "5/6"


@pytest.mark.parametrize("refused", [False, True], ids=["trainings fail", "updates are refused"])
@pytest.mark.parametrize("rule", ["Krum", "MultiKrum"])
def test_a_round_with_fewer_updates_than_its_rule_needs_ends_in_a_condition_and_aggregates_nothing(
    tmp_path: Path, rule: str, refused: bool
) -> None:
    run = a_run(6, aggregation={"rule": rule}, sites={"quorum": 0.3}, rounds={"count": 1})
    world = World(run, tmp_path, losing("site-a", "site-d", refused=refused))
    world.settle()

    assert world.conditions()["Failed"] == "RuleOutOfReach"
    assert world.message("Failed").startswith("round 1 needs 5 updates of 6 sites; lost: site-a: ")
    assert world.message("Failed").endswith(
        f"aggregation.rule {rule} with maliciousSites 1 needs the updates of 5 sites, and 4 can send one: {ADVICE}"
    )
    assert [key for key in world.store.list("rounds") if "/global/" in key] == []


def with_aggregation(world: World, **aggregation: Any) -> None:
    """The spec is edited."""
    spec = world.run.spec.model_copy(update={"aggregation": AggregationSpec.model_validate(aggregation)})
    world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": spec}))


def test_an_edit_of_the_rule_changes_no_round_that_has_begun(tmp_path: Path) -> None:
    """Its updates may be too few for the new rule, and its trainings were told with how many others they are mixed."""
    world = World(a_run(6, sites={"quorum": 0.3}, rounds={"count": 2}), tmp_path, losing("site-a", "site-d"))
    world.work_until("train-r1")
    with_aggregation(world, **KRUM)
    world.backend.kill("toy-train-r1-site-b-a0")
    world.work_until("train-r2")

    task = {name: json.loads(text) for name, text in world.backend.tasks.items()}
    promised = [task[f"toy-train-r{round_}-site-b-a{attempt}"]["contributors"] for round_, attempt in ((1, 0), (1, 1), (2, 0))]
    assert promised == [2, 2, 1]
    assert [task["toy-aggregate-r1-a0"][field] for field in ("rule", "maliciousSites")] == ["Mean", 1]
    assert required_object(world.store, names.round_commit(1), RoundCommit).contributions


def test_an_edit_of_the_rule_counts_from_the_next_plan_on(tmp_path: Path) -> None:
    fleet = [a_site(site.name, policy={"minSites": 1}) for site in a_run(6).sites]
    world = World(a_run(fleet, sites={"quorum": 0.3}, rounds={"count": 2}), tmp_path)
    world.work_until("train-r1")
    with_aggregation(world, **KRUM)
    world.settle()

    plans = [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in (1, 2)]
    commits = [required_object(world.store, names.round_commit(round_), RoundCommit) for round_ in (1, 2)]
    assert [plan.needed for plan in plans] == [2, 5]
    assert [len([one for one in commit.contributions if one.share]) for commit in commits] == [6, 1]


def test_of_a_plan_of_an_earlier_version_the_rule_of_the_spec_counts(tmp_path: Path) -> None:
    world = World(a_run(6, sites={"quorum": 0.3}), tmp_path)
    world.work_until("train-r1")
    plan = required_object(world.store, names.round_plan(1), RoundPlan)
    spec = a_run(6, aggregation=KRUM).spec

    assert with_planned_rule(spec, plan).aggregation.rule == "Mean"
    assert with_planned_rule(spec, plan.model_copy(update={"rule": None})) == spec


def test_of_a_round_without_a_quorum_the_quorum_is_the_reason(tmp_path: Path) -> None:
    world = World(a_run(6, aggregation={"rule": "TrimmedMean"}, sites={"quorum": 1.0}), tmp_path, losing("site-a"))
    world.settle()

    assert world.conditions()["Failed"] == "QuorumOutOfReach"
    assert ADVICE not in world.message("Failed")
