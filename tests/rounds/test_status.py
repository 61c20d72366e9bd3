"""The conditions and figures of a run in every situation, and what kstatus and `kubectl wait` conclude from them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crds import default_status, is_accepted
from health import is_met, kstatus
from run_situations import (
    COMPLETE,
    FAILED,
    RUNNING,
    SITUATIONS,
    TRUE,
    body_of,
    finished_status,
    status_after,
)
from stand_in_runs import World, a_run
from trainer_results import an_update, good_trainer

from fedpipe_operator import names
from fedpipe_operator.api import Condition, ConditionType, FineTuneStatus, MeasuredStatus, Reason
from fedpipe_operator.rounds import Observed
from fedpipe_operator.rounds.attempts import Active, Done, Dropped, Pending, WorkState
from fedpipe_operator.rounds.observed import summarize_commit, summarize_evaluation, summarize_plan
from fedpipe_operator.rounds.records import Contribution, RoundCommit, RoundEvaluation, RoundPlan, Verdict
from fedpipe_operator.rounds.stages import Step
from fedpipe_operator.rounds.status import committed_updates, measured_status, status_of, updates_under_way
from fedpipe_operator.rounds.work_states import StageContext
from fedpipe_operator.sites import Measurement
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.contract import Artifact, EnergySource, Measured, TrainTask


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_conditions_of_a_run_and_the_health_that_kstatus_computes(situation: str) -> None:
    status, expected, health = SITUATIONS[situation]
    found = {str(one.type): f"{one.status} {one.reason}" for one in status.conditions}

    assert {kind: found[kind] for kind in expected} == expected
    assert kstatus(body_of(status)) == health
    assert is_met(body_of(status), "Complete") == expected.get("Complete", "").startswith("True")
    assert is_met(body_of(status), "failed") == expected.get("Failed", "").startswith("True")


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_condition_is_there_once_in_the_same_order_and_the_crd_accepts_it(situation: str) -> None:
    status, _, _ = SITUATIONS[situation]

    assert [one.type for one in status.conditions] == list(ConditionType)
    assert status.observed_generation == 1
    assert is_accepted(body_of(status))


@pytest.mark.parametrize("kind", ["FederatedFineTune", "EdgeSite"])
def test_an_object_that_the_operator_has_not_observed_is_not_current(kind: str) -> None:
    body = {"metadata": {"generation": 1}, "status": default_status(kind)}

    assert kstatus(body) == "InProgress"
    assert not is_met(body, "Ready")
    assert body["status"]["conditions"][0]["reason"] == "Pending"


@pytest.mark.parametrize(
    ("before", "health"), [(status_after(COMPLETE), "Current"), (status_after(FAILED), "Failed")], ids=["complete", "failed"]
)
def test_an_edit_after_the_end_is_observed_and_does_not_change_the_end(before: FineTuneStatus, health: str) -> None:
    edited = finished_status(before, generation=2)

    assert kstatus(body_of(before, generation=2)) == "InProgress"
    assert kstatus(body_of(edited, generation=2)) == health
    assert is_met(body_of(edited, generation=2), "Complete") == (health == "Current")
    assert [(one.type, one.status, one.last_transition_time) for one in edited.conditions] == [
        (one.type, one.status, one.last_transition_time) for one in before.conditions
    ]
    assert finished_status(edited, generation=2) == edited


def test_a_status_that_has_not_ended_is_not_finished() -> None:
    assert finished_status(status_after(RUNNING), generation=2) == status_after(RUNNING)


def test_the_time_of_a_transition_changes_with_the_status_alone() -> None:
    first = status_after(RUNNING, now=1000.0)
    second = status_after(Step(Reason.AGGREGATING, "round 1"), first, now=2000.0)
    third = status_after(COMPLETE, second, now=3000.0)
    times = [{one.type: one.last_transition_time for one in status.conditions} for status in (first, second, third)]

    assert times[0] == times[1]
    assert {kind for kind in times[2] if times[2][kind] != times[1][kind]} == {"Progressing", "Complete", "Ready"}


def test_a_condition_of_another_controller_is_kept_after_ours() -> None:
    other = Condition(type="Audited", status=TRUE, reason="ByHand")

    status = status_after(RUNNING, FineTuneStatus(conditions=(other,)))

    assert status.conditions[-1] == other
    assert [one.type for one in status.conditions[:-1]] == list(ConditionType)


# --- Updates ---

SITES = ("a", "b", "c")


def a_plan(**changes: Any) -> RoundPlan:
    fields = {"round": 1, "started_at": 0.0, "fingerprint": "f", "weights": {}, "plans": {}, "selected": SITES, "evaluators": SITES}
    return RoundPlan(**(fields | {"needed": 2} | changes))


def a_commit(*sites: str, refused: Mapping[str, Verdict] | None = None, absent: Mapping[str, str] | None = None) -> RoundCommit:
    contributions = tuple(Contribution(site=site, attempt=0, sha256="0", samples=1, share=1 / len(sites)) for site in sites)
    adapter = Artifact(name="adapter", sha256="0" * 64, size=1)
    return RoundCommit(
        round=1, method="Exact", adapter=adapter, ranks={}, contributions=contributions, refused=refused or {}, absent=absent or {}
    )


REFUSED = Verdict(accepted=False, reason="NotFinite", message="NaN")
ACCEPTED = Verdict(accepted=True)
LATE = "DeadlineExceeded: not done within 30m"

UNDER_WAY: dict[str, tuple[dict[str, WorkState], dict[str, Verdict], tuple[int, int, int, str]]] = {
    "nothing has started": ({site: Pending(0) for site in SITES}, {}, (0, 0, 0, "0/3")),
    "all sites train": ({site: Active(0, "job") for site in SITES}, {}, (0, 0, 0, "0/3")),
    "one has arrived": ({"a": Done(0), "b": Active(0, "job"), "c": Active(0, "job")}, {}, (1, 0, 0, "1/3")),
    "all have arrived": ({site: Done(0) for site in SITES}, {}, (3, 0, 0, "3/3")),
    "one is refused": ({"a": Done(0), "b": Done(0), "c": Dropped("NotFinite: NaN")}, {"a": ACCEPTED, "c": REFUSED}, (2, 1, 0, "2/3")),
    "one is late": ({"a": Done(0), "b": Done(0), "c": Dropped(LATE)}, {}, (2, 0, 1, "2/3")),
    "one failed": ({"a": Done(0), "b": Done(0), "c": Dropped("BadData: train.jsonl is gone")}, {}, (2, 0, 0, "2/3")),
    "one of each": ({"a": Done(0), "b": Dropped("NotFinite: NaN"), "c": Dropped(LATE)}, {"b": REFUSED}, (1, 1, 1, "1/3")),
}


@pytest.mark.parametrize("situation", UNDER_WAY)
def test_the_updates_of_a_round_under_way(situation: str) -> None:
    states, verdicts, expected = UNDER_WAY[situation]

    found = updates_under_way(a_plan(), states, {site for site, verdict in verdicts.items() if not verdict.accepted})

    assert (found.expected, found.needed) == (3, 2)
    assert (found.received, found.refused, found.late, found.summary) == expected


@pytest.mark.parametrize(
    ("commit", "expected"),
    [
        (a_commit("a", "b", "c"), (3, 0, 0, "3/3")),
        (a_commit("a", "b", refused={"c": REFUSED}), (2, 1, 0, "2/3")),
        (a_commit("a", "b", absent={"c": LATE}), (2, 0, 1, "2/3")),
        (a_commit("a", "b", absent={"c": "Killed: by the kernel"}), (2, 0, 0, "2/3")),
        (a_commit("a", refused={"b": REFUSED}, absent={"c": LATE}), (1, 1, 1, "1/3")),
    ],
    ids=["all", "one refused", "one late", "one failed", "one of each"],
)
def test_the_updates_of_a_committed_round(commit: RoundCommit, expected: tuple[int, int, int, str]) -> None:
    found = committed_updates(summarize_commit(commit), summarize_plan(a_plan()))

    assert (found.expected, found.needed) == (3, 2)
    assert (found.received, found.refused, found.late, found.summary) == expected


def test_without_its_plan_a_committed_round_expected_what_it_received() -> None:
    found = committed_updates(summarize_commit(a_commit("a", "b")), None)

    assert (found.expected, found.received, found.summary) == (2, 2, "2/2")


def counts(world: World) -> tuple[int, int, int, int, int] | None:
    found = world.run.resource.status.updates
    return found and (found.expected, found.needed, found.received, found.refused, found.late)


def test_the_updates_from_the_first_profile_to_the_end_of_a_run(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        wrong = isinstance(task, TrainTask) and task.site == "site-b" and task.round == 2
        return an_update(task, folder, samples=0) if wrong else good_trainer(task, folder)

    world = World(a_run(4, sites={"quorum": 0.5}, rounds={"count": 2, "deadline": "10m"}), tmp_path, trainer)
    world.reconcile()
    before_the_plan = counts(world)
    world.work_until("train-r1")
    world.reconcile()
    before_training = counts(world)
    world.backend.work("toy-train-r1-site-a-a0")
    world.backend.work("toy-train-r1-site-b-a0")
    world.reconcile()
    half = counts(world)
    world.now += 600
    world.reconcile()
    at_the_deadline = counts(world)
    world.work_until("aggregate-r1")
    world.backend.work("toy-aggregate-r1-a0")
    world.reconcile()
    committed = counts(world)
    world.settle()

    assert before_the_plan is None
    assert before_training == (4, 2, 0, 0, 0)
    assert half == (4, 2, 2, 0, 0)
    assert at_the_deadline == (4, 2, 2, 0, 2)
    assert committed == (4, 2, 2, 0, 2)
    assert world.store.read(names.round_commit(2)) is not None
    assert counts(world) == (4, 2, 3, 1, 0)
    assert [entry.updates for entry in world.run.resource.status.history] == ["2/4", "3/4"]


def test_the_plans_of_the_status_say_which_weights_have_which_rank(tmp_path: Path) -> None:
    world = World(a_run(planning={"ranks": [4]}), tmp_path)
    world.work_until("train-r1")

    plan = required_object(world.store, names.round_plan(1), RoundPlan)

    shown = {one.site: one.ranks for one in world.run.resource.status.plans}
    assert shown == plan.rank_lines
    assert set(shown.values()) == {("q, v: rank 4 in layer 0",)}


def test_the_updates_of_a_run_that_failed_stay_in_its_status(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 1.0}, rounds={"count": 1, "deadline": "10m"}), tmp_path)
    world.work_until("train-r1")
    world.backend.work("toy-train-r1-site-a-a0")
    world.now += 600
    world.reconcile()
    world.reconcile()  # the first one commits the evaluation of the base
    failed = world.run.resource.status
    world.run = replace(world.run, sites=())
    world.reconcile()

    assert world.conditions()["Failed"] == "QuorumOutOfReach"
    assert counts(world) == (3, 3, 1, 0, 2)
    assert world.run.resource.status == failed


def test_the_history_names_sites_whose_increments_were_shortened_and_those_that_the_rule_did_not_select() -> None:
    commit = a_commit("a", "b", "c")
    changes = ({}, {"clipped": 3, "smallest_clip": 0.0123}, {"share": 0.0})
    parts = tuple(part.model_copy(update=change) for part, change in zip(commit.contributions, changes, strict=True))

    commit = commit.model_copy(update={"contributions": parts})
    evaluation = summarize_evaluation(RoundEvaluation(round=1, finished_at=0.0))
    observed = Observed(commits={1: summarize_commit(commit)}, evaluations={1: evaluation})
    (entry,) = status_of(StageContext(a_run(), observed, 1000.0), RUNNING).history

    assert entry.clipped == {"b": "3 increments shortened, the most to 0.012 of it"}
    assert list(entry.left_out) == ["c"]
    assert entry.left_out["c"].startswith("NotSelected: ")


def measuring(task: Any, folder: Path) -> Any:
    """A trainer that measures what it can; in round 2 it is killed at site-b."""
    result = good_trainer(task, folder)
    if not isinstance(task, TrainTask):
        return result
    used = Measured(seconds={"train": 30.0, "transfer": 1.5}, uploaded_bytes=100, downloaded_bytes=200)
    figures = {"measured": used, "tokens_per_second": 4.0, "mfu": 0.123456, "padded_tokens": 30, "energy_joules": 60.0}
    is_killed = (task.site, task.round) == ("site-b", 2)
    return None if is_killed else result.model_copy(update=figures | {"energy_source": EnergySource.RAPL})


def test_the_status_says_how_well_each_site_used_what_it_has_in_its_newest_aggregated_training(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 2, "deadline": "10m"}, sites={"quorum": 0.6}), tmp_path, measuring)
    world.settle()
    status = world.run.resource.status
    found = {one.site: one for one in status.measured}

    assert {site: one.round for site, one in found.items()} == {"site-a": 2, "site-b": 1, "site-c": 2}
    one = found["site-a"]
    assert (one.tokens_per_second, one.padded_tokens_per_second, one.mfu) == (4.0, 5.0, 0.1235)
    assert (one.tokens_per_joule, one.energy_source, one.granularity) == (2.0, "RAPL", 20.0)
    assert (one.uploaded_bytes, one.downloaded_bytes, one.bits_per_second) == (100, 200, 1600)
    assert is_accepted(body_of(status))


def test_a_commit_of_an_earlier_operator_shows_the_bytes_alone() -> None:
    found = Measurement.model_validate_json('{"stepSeconds": 2, "otherSeconds": 2, "peakMemoryBytes": 10, "steps": 1, "uploadedBytes": 7}')

    assert measured_status("site-a", 3, found) == MeasuredStatus(site="site-a", round=3, uploaded_bytes=7)


def test_whoever_writes_a_commit_into_the_bucket_makes_no_status_that_cannot_be_written(tmp_path: Path) -> None:
    found = Measurement(step_seconds=1, other_seconds=1, peak_memory_bytes=1, steps=1, uploaded_bytes=10**400, downloaded_bytes=10**400)
    status = measured_status("site-a", 1, found)
    world = World(a_run(), tmp_path, measuring)
    world.work_until("train-r2")
    forged = required_object(world.store, names.round_commit(1), RoundCommit)
    others = tuple(one.model_copy(update={"site": "Not a name"}) if one.site == "site-b" else one for one in forged.contributions)
    world.store.write(names.round_commit(1), forged.model_copy(update={"contributions": others}).to_json().encode())
    world.restart()
    world.reconcile()

    assert max(status.uploaded_bytes, status.downloaded_bytes) < 2**63
    assert {one.site for one in world.run.resource.status.measured} == {"site-a", "site-c"}
