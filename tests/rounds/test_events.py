"""The events of a run: a site that is planned anew or left out is told once, with the reason, however many sites there are."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stand_in_runs import World, a_run
from trainer_results import a_failure, good_trainer

from fedpipe_operator.api import FineTuneStatus, Reason
from fedpipe_operator.rounds import Event, Observed
from fedpipe_operator.rounds.events import events_of
from fedpipe_operator.rounds.observed import summarize_plan
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.rounds.work_states import StageContext
from fedpipe_trainer.contract import FailureReason, Forecast, Plan, ProfileResult, ProfileTask, TrainResult, TrainTask

FORECAST = Forecast(memory_bytes=1000, seconds=30.0, step_seconds=20.0, upload_bytes=1, download_bytes=1)
SMALLER = {"bits": [8, 16], "ranks": [0, 2, 4], "batchSizes": [1, 2, 4]}


def a_round_plan(round_: int, notes: Mapping[str, str], excluded: Mapping[str, str]) -> RoundPlan:
    """A plan whose sites have these notes."""
    plans = {site: Plan(bits=16, batch_size=8, steps=1, ranks={}, forecast=FORECAST, why=(note,)) for site, note in notes.items()}
    return RoundPlan(
        round=round_,
        started_at=0.0,
        fingerprint="",
        weights={},
        plans=plans,
        selected=tuple(plans),
        evaluators=tuple(plans),
        needed=1,
        excluded=dict(excluded),
    )


def events_at_round_2(notes: Mapping[str, str], excluded: Mapping[str, str], before: Mapping[str, str]) -> tuple[Event, ...]:
    """The events when the status shows round 2 for the first time; `before`: the sites that round 1 left out."""
    plan = a_round_plan(2, notes, excluded)
    plans = {1: summarize_plan(a_round_plan(1, notes, before)), 2: summarize_plan(plan)}
    run = a_run()
    resource = run.resource.model_copy(update={"status": FineTuneStatus(round=1)})
    context = StageContext(replace(run, resource=resource), Observed(plan=plan, plans=plans), 0.0)
    assert events_of(replace(context, run=replace(run, resource=_at(run.resource, 2))), FineTuneStatus(round=2)) == ()
    return events_of(context, FineTuneStatus(round=2))


def _at(resource: Any, round_: int) -> Any:
    return resource.model_copy(update={"status": FineTuneStatus(round=round_)})


def left_out(world: World) -> list[str]:
    return [event.message for event in world.events if event.reason == Reason.SITES_LEFT_OUT]


def test_a_site_without_a_further_plan_is_told_once_with_the_reason(tmp_path: Path) -> None:
    def out_of_memory(task: Any, folder: Path) -> Any:
        if isinstance(task, TrainTask) and task.site == "site-a":
            return a_failure(TrainResult, task, FailureReason.OUT_OF_MEMORY, "one sample does not fit in memory")
        return good_trainer(task, folder)

    world = World(a_run(rounds={"count": 3}, planning=SMALLER, sites={"quorum": 0.5}), tmp_path, out_of_memory)
    world.settle()

    (message,) = left_out(world)
    assert message.startswith("round 3: site-a: not even its smallest plan fits: after a plan of it ran out of memory, ")


def test_so_is_one_that_has_no_plan_from_the_start(tmp_path: Path) -> None:
    def no_data(task: Any, folder: Path) -> Any:
        if isinstance(task, ProfileTask) and task.site == "site-a":
            return a_failure(ProfileResult, task, FailureReason.BAD_DATA, "train.jsonl is not on the volume")
        return good_trainer(task, folder)

    world = World(a_run(sites={"quorum": 0.5}), tmp_path, no_data)
    world.settle()

    assert left_out(world) == ["round 1: site-a: BadData: train.jsonl is not on the volume"]
    assert all(event.warning for event in world.events if event.reason == Reason.SITES_LEFT_OUT)


def test_sites_that_the_status_has_no_room_for_have_their_events() -> None:
    sites = [f"site-{number:03}" for number in range(105)]
    notes = dict.fromkeys(sites[:-1], "it fits") | {
        sites[103]: "re-planned: a step took 4 times as long as predicted: 3 instead of 12 steps"
    }

    events = events_at_round_2(notes, {sites[104]: "too little memory"}, {})

    assert [(event.reason, event.message) for event in events] == [
        ("Replanned", "round 2: site-103: re-planned: a step took 4 times as long as predicted: 3 instead of 12 steps"),
        ("SitesLeftOut", "round 2: site-104: too little memory"),
    ]


def test_a_round_that_leaves_out_the_same_sites_as_the_last_has_no_event() -> None:
    assert events_at_round_2({"site-a": "it fits"}, {"site-b": "too little memory"}, {"site-b": "too slow"}) == ()


def test_sites_with_the_same_reason_are_one_note_that_names_the_first() -> None:
    sites = [f"site-{number:02}" for number in range(30)]

    (event,) = events_at_round_2({"a": "it fits"}, dict.fromkeys(sites, "too little memory"), {})

    assert event.message == "round 2: site-00, site-01, site-02, site-03, site-04 and 25 more: too little memory"


def test_an_event_tells_of_as_many_sites_as_it_has_room_for_and_counts_the_others() -> None:
    notes = {f"site-{number:02}": f"re-planned: {'a long reason ' * 10}{number}" for number in range(30)}

    (event,) = events_at_round_2(notes, {}, {})

    assert len(event.message) < 1024
    assert event.message.startswith("round 2: site-00: re-planned: ")
    assert event.message.endswith("; and 26 more: see status.plans, or rounds/0002/plan.json in the store")
