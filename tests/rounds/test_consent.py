"""The data owners' policies decide which sites a run has: one that forbids it is left out before any job, and costs only itself."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in_runs import World, a_run, a_site
from trainer_results import a_failure, good_trainer

from fedpipe_operator import names
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.consent import least_contributors, left_out, missing_sites, mixable, select_mixable, with_unmixed_weights
from fedpipe_operator.rounds.records import RoundCommit
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import (
    DataPolicy,
    EvaluateTask,
    FailureReason,
    Forecast,
    Plan,
    ProfileTask,
    TrainResult,
    TrainTask,
    parse_task,
)

LEAST = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 7))


def fleet(*policies: dict[str, Any]) -> list[Any]:
    """A site for each of these policies."""
    return [a_site(f"site-{letter}", policy=policy) for letter, policy in zip("abcdef", policies, strict=False)]


def with_policies(run: Run, *policies: dict[str, Any]) -> Run:
    """The run after its sites' policies were changed."""
    return Run(run.resource, tuple(fleet(*policies)))


def labelled(run: Run, labels: dict[str, str]) -> Run:
    metadata = run.resource.metadata.model_copy(update={"labels": labels})
    return Run(run.resource.model_copy(update={"metadata": metadata}), run.sites)


def excluded(world: World) -> dict[str, str]:
    return dict(world.run.resource.status.excluded)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"runs": {"names": ["other"]}}, "PolicyDenied: policy.runs does not select the run toy"),
        ({"runs": {"matchLabels": {"study": "x"}}}, "PolicyDenied: policy.runs does not select the run toy"),
        ({"columns": ["text"]}, "PolicyDenied: policy.columns does not allow the column 'label' (task.label): correct task.label if it is"),
        ({"taskTypes": ["CausalLM"]}, "PolicyDenied: policy.taskTypes does not allow SequenceClassification"),
        ({"minSites": 4}, "TooFewSites: policy.minSites of the site is 4, and without it 2 take part"),
    ],
)
def test_a_site_whose_policy_forbids_the_run_is_left_out_before_any_job(tmp_path: Path, policy: dict[str, Any], reason: str) -> None:
    world = World(a_run(fleet({}, {}, policy), sites={"quorum": 0.6}), tmp_path)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert excluded(world)["site-c"].startswith(reason)
    assert not [name for name in world.backend.started if "site-c" in name]
    assert any(event.reason == "SitesLeftOut" and reason in event.message for event in world.events)


def test_a_run_that_every_policy_allows_has_all_sites(tmp_path: Path) -> None:
    policy = {"runs": {"names": ["toy"], "matchLabels": {"study": "x"}}, "columns": ["label", "text"], "minSites": 3}
    world = World(labelled(a_run(fleet(policy, policy, policy)), {"study": "x"}), tmp_path)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert excluded(world) == {}
    assert world.run.resource.status.updates is not None
    assert world.run.resource.status.updates.needed == 3


def test_a_run_with_too_few_sites_waits_for_others_and_says_why(tmp_path: Path) -> None:
    world = World(a_run(fleet({})), tmp_path)
    decision = world.reconcile()

    assert decision.actions == ()
    assert world.conditions()["Progressing"] == "TooFewSites"
    assert world.message("Progressing") == (
        "a round needs 1 of 1 sites, and these may take no part: site-a: TooFewSites: policy.minSites of the site is 2, "
        "and without it 0 take part: add sites, or have it lowered"
    )

    world.run = Run(world.run.resource, tuple(fleet({}, {})))
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_selector_that_matches_one_site_makes_no_aggregate_of_it(tmp_path: Path) -> None:
    world = World(a_run(fleet({}), sites={"quorum": 0.1}), tmp_path)
    world.settle()
    world.now += 601
    world.settle()

    assert world.conditions()["Failed"] == "TooFewSites"
    assert world.store.list("rounds") == []


def test_a_run_with_too_few_sites_fails_at_the_deadline(tmp_path: Path) -> None:
    world = World(a_run(fleet({}, {"runs": {"names": []}})), tmp_path)
    world.settle()
    world.now += 601
    world.settle()

    assert world.conditions()["Failed"] == "TooFewSites"
    assert world.backend.started == []


def test_consent_that_is_withdrawn_costs_the_site_the_round_under_way(tmp_path: Path) -> None:
    world = World(a_run(fleet({}, {}, {}), sites={"quorum": 0.6}), tmp_path)
    world.work_until("train")
    world.run = with_policies(world.run, {}, {}, {"runs": {"names": []}})
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    first, second = world.run.resource.status.history
    assert first.left_out["site-c"].startswith("PolicyDenied: policy.runs does not select the run toy")
    assert (first.updates, second.updates) == ("2/3", "2/2")
    assert any("site-c" in name for name in world.backend.discarded)


def refusing(*sites: str) -> Any:
    """A trainer whose updates at these sites are refused."""

    def trainer(task: Any, folder: Path) -> Any:
        result = good_trainer(task, folder)
        is_refused = isinstance(task, TrainTask) and task.site in sites
        return result.model_copy(update={"fingerprint": "f" * 64}) if is_refused else result

    return trainer


def test_the_aggregate_of_fewer_updates_than_a_policy_asks_for_is_never_written(tmp_path: Path) -> None:
    world = World(a_run(fleet({}, {}), sites={"quorum": 0.5}), tmp_path, trainer=refusing("site-b"))
    world.settle()

    assert world.conditions()["Failed"] == "QuorumOutOfReach"
    assert world.message("Failed").startswith("round 1 needs 2 updates of 2 sites; lost: site-b: WrongBase")
    assert [key for key in world.store.list("rounds") if "/global/" in key] == []


def test_an_update_of_a_site_that_asks_for_more_is_refused_and_the_others_are_aggregated(tmp_path: Path) -> None:
    world = World(a_run(fleet({}, {}, {"minSites": 4}, {}), sites={"quorum": 0.5}), tmp_path, trainer=refusing("site-d"))
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    first = world.run.resource.status.history[0]
    assert first.left_out["site-c"].startswith("TooFewSites: policy.minSites of the site is 4, and without it 2 of 3 accepted updates")
    assert first.left_out["site-d"].startswith("WrongBase")


def test_a_round_that_loses_sites_before_it_has_too_few_updates_fails_without_an_aggregation(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        fails = isinstance(task, TrainTask) and task.site == "site-b"
        return a_failure(TrainResult, task, FailureReason.BAD_DATA, "no rows") if fails else good_trainer(task, folder)

    world = World(a_run(fleet({}, {}), sites={"quorum": 0.5}), tmp_path, trainer=trainer)
    world.settle()

    assert world.conditions()["Failed"] == "QuorumOutOfReach"
    assert "needs 2 updates of 2 sites" in world.message("Failed")
    assert not [name for name in world.backend.started if "aggregate" in name]


@pytest.mark.parametrize(("rule", "contributors"), [("Mean", 2), ("TrimmedMean", 3), ("MultiKrum", 2), ("Krum", 1)])
def test_a_profile_is_told_of_as_many_contributors_as_the_rule_mixes_whatever_the_quorum(rule: str, contributors: int) -> None:
    fleet = [a_site(f"site-{index}", policy={"minSites": 1}) for index in range(6)]
    run = a_run(fleet, sites={"quorum": 0.3}, aggregation={"rule": rule})

    assert least_contributors(run, "site-0") == contributors


def test_every_task_has_the_policy_of_its_site_and_names_the_least_number_of_contributors(tmp_path: Path) -> None:
    run = a_run(fleet({"minSites": 1}, {"maxLabels": 7, "minSites": 3}, {}), sites={"quorum": 0.3})
    world = World(labelled(run, {"study": "x"}), tmp_path)
    world.settle()

    tasks = [task for text in world.backend.tasks.values() if '"policy"' in text and (task := parse_task(text))]
    assert {type(task) for task in tasks} == {ProfileTask, TrainTask, EvaluateTask}
    for task in tasks:
        expected = {
            "site-a": (DataPolicy(min_sites=1), 1),
            "site-b": (DataPolicy(max_labels=7, min_sites=3), 3),
            "site-c": (DataPolicy(), 2),
        }[task.site]
        assert (task.policy, task.contributors, task.run_labels) == (*expected, {"study": "x"})  # type: ignore[union-attr]


def test_no_site_is_asked_to_show_more_rows_than_its_policy_allows(tmp_path: Path) -> None:
    world = World(a_run(fleet({"maxShownRows": 1}, {}, {"maxShownRows": 9}), evaluation={"samples": 3}), tmp_path)
    world.settle()

    asked = {task.site: task.evaluation.samples for text in world.backend.tasks.values() if isinstance(task := parse(text), EvaluateTask)}
    assert asked == {"site-a": 1, "site-b": 0, "site-c": 3}
    told = {plan.site: plan.why[-1] for plan in world.run.resource.status.plans if "policy.maxShownRows" in plan.why[-1]}
    assert told.keys() == {"site-a", "site-b"}
    assert told["site-a"].startswith("it shows 1 of the 3 validation rows that evaluation.samples asks for")


def parse(text: str) -> Any:
    return parse_task(text) if '"policy"' in text else None


def fleet_of(count: int, min_sites: int) -> list[Any]:
    return fleet(*({"minSites": min_sites} for _ in range(count)))


@pytest.mark.parametrize(("min_sites", "sites"), [(2, 5), (3, 6)])
def test_updates_that_multi_krum_leaves_out_are_none_that_a_site_is_mixed_with(tmp_path: Path, min_sites: int, sites: int) -> None:
    """Of n updates, for one malicious site, it averages n − 3."""
    run = a_run(fleet_of(sites, min_sites), aggregation={"rule": "MultiKrum"}, rounds={"count": 1})
    fewer = left_out(a_run(fleet_of(sites, min_sites + 1), aggregation={"rule": "MultiKrum"}))
    world = World(run, tmp_path)
    world.settle()

    assert left_out(run) == {}
    assert world.conditions()["Complete"] == "RoundsCompleted"
    commit = required_object(world.store, names.round_commit(1), RoundCommit)
    assert sum(one.share > 0 for one in commit.contributions) == min_sites
    assert len(fewer) == sites
    assert fewer["site-a"] == (
        f"TooFewSites: policy.minSites of the site is {min_sites + 1}, without it 0 take part, and aggregation.rule MultiKrum leaves out 3 "
        "updates: add sites, name another rule, or have minSites lowered"
    )


def test_a_round_of_multi_krum_needs_the_updates_that_it_leaves_out_as_well(tmp_path: Path) -> None:
    run = a_run(fleet_of(6, 3), aggregation={"rule": "MultiKrum"}, sites={"quorum": 0.5})
    world = World(run, tmp_path, trainer=refusing("site-b"))
    world.settle()

    assert world.conditions()["Failed"] == "QuorumOutOfReach"
    assert world.message("Failed").startswith("round 1 needs 6 updates of 6 sites; lost: site-b: WrongBase")
    assert [key for key in world.store.list("rounds") if "/global/" in key] == []


def test_a_task_of_multi_krum_promises_the_updates_that_are_averaged_and_not_those_that_are_sent(tmp_path: Path) -> None:
    world = World(a_run(fleet_of(6, 2), aggregation={"rule": "MultiKrum"}, sites={"quorum": 1.0}, rounds={"count": 1}), tmp_path)
    world.settle()

    tasks = [task for text in world.backend.tasks.values() if (task := parse(text))]
    assert {type(task) for task in tasks} == {ProfileTask, TrainTask, EvaluateTask}
    assert {task.contributors for task in tasks} == {3}


def test_a_site_that_multi_krum_would_mix_with_too_few_of_those_that_can_train_is_left_out_of_the_plan(tmp_path: Path) -> None:
    """Of seven sites one cannot hold the model: of the other six, three would be averaged."""
    small, asking = a_site("small", capacity={"memory": "64Mi"}), a_site("asking", policy={"minSites": 4})
    run = a_run([*fleet_of(5, 2), small, asking], aggregation={"rule": "MultiKrum"}, sites={"quorum": 0.5}, rounds={"count": 1})
    world = World(run, tmp_path)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"
    assert excluded(world).keys() == {"small", "asking"}
    assert excluded(world)["asking"].startswith("TooFewSites: policy.minSites of the site is 4, without it 5 take part")
    assert not [name for name in world.backend.started if "train" in name and "asking" in name]


def test_krum_mixes_nobody() -> None:
    reasons = left_out(a_run(fleet_of(6, 2), aggregation={"rule": "Krum"}))

    alone = "TooFewSites: policy.minSites of the site is 2, and aggregation.rule Krum makes the global adapter of one update"
    assert set(reasons.values()) == {f"{alone}: name another rule, such as MultiKrum"}


def test_few_sites_a_round_leave_out_those_that_ask_for_more(tmp_path: Path) -> None:
    run = a_run(fleet({}, {"minSites": 3}, {}, {}), sites={"perRound": 2})
    world = World(run, tmp_path)
    world.settle()

    assert left_out(run)["site-b"].startswith("TooFewSites: policy.minSites of the site is 3, and without it 2 take part")
    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_run_of_which_enough_sites_are_allowed_misses_none() -> None:
    run = a_run(fleet({}, {}, {"minSites": 9}), sites={"quorum": 0.6})

    assert missing_sites(run, left_out(run)) == ""
    assert missing_sites(a_run(fleet({}, {}, {"minSites": 9})), left_out(run)).startswith("a round needs 3 of 3 sites")


@given(LEAST, st.none() | st.integers(1, 7))
def test_mixable_sites_are_content_and_no_larger_set_is(least: dict[str, int], most: int | None) -> None:
    found = mixable(least, most)
    size = len(found) if most is None else min(most, len(found))

    assert all(least[site] <= size for site in found)
    for count in range(len(least) + 1):  # a set of so many holds those that ask for the least
        larger = sorted(least.values())[:count]
        if count > len(found):
            assert larger[-1] > (count if most is None else min(most, count))


@given(LEAST, st.integers(1, 7))
def test_the_chosen_sites_of_a_round_are_content_with_their_number(least: dict[str, int], count: int) -> None:
    chosen = select_mixable(sorted(least), least, lambda candidates: tuple(sorted(candidates)[:count]))

    assert all(least[site] <= len(chosen) for site in chosen)
    assert len(chosen) <= count


def a_plan(**ranks: int) -> Plan:
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    return Plan(bits=32, batch_size=1, steps=1, ranks=ranks, forecast=forecast, why=("first",))


def test_a_plan_says_how_many_weights_its_site_would_train_alone() -> None:
    plans = {"a": a_plan(q=4, k=4, v=4), "b": a_plan(q=0, k=0, v=2), "c": a_plan(q=2, k=2, v=2), "d": a_plan(q=4, k=4, v=4)}
    min_sites = {"a": 2, "b": 2, "c": 1, "d": 2}

    of_two, of_three = (with_unmixed_weights(plans, selected, min_sites) for selected in ({"a", "b"}, {"a", "b", "c"}))

    reason = "2 of its 3 adapters stay out of the global adapter: too few sites train them for its policy.minSites, 2"
    assert of_two == plans | {"a": plans["a"].model_copy(update={"why": ("first", reason)})}
    assert of_three == plans
