"""How the sites spent the rounds: the slowest site is never idle, the others wait for it."""

from dataclasses import replace

import pytest

from fedpipe_operator.report import RunRecord
from fedpipe_operator.report.timeline import MAX_ROUNDS, idle_share, round_timelines, timeline_figure
from fedpipe_trainer.contract import Outcome, TrainResult


def measured(record: RunRecord, seconds: dict[str, dict[str, float]], round_: int = 6) -> RunRecord:
    """The record with this round only, whose sites measured these seconds by phase."""
    updates = {site: with_seconds(record.updates[round_][site], phases) for site, phases in seconds.items()}
    return replace(record, rounds={round_: record.rounds[round_]}, updates={round_: updates})


def with_seconds(update: TrainResult, phases: dict[str, float]) -> TrainResult:
    return update.model_copy(update={"measured": update.measured.model_copy(update={"seconds": phases})})


SECONDS = {
    "clinic-north": {"transfer": 1.0, "load": 2.0, "train": 7.0},
    "hospital-east": {"load": 2.0, "train": 3.0},
    "practice-south": {"load": 1.0, "evaluate": 2.0, "train": 4.0, "warm-up": 0.5},
}


def test_a_site_is_idle_until_the_slowest_has_finished(record: RunRecord) -> None:
    [timeline] = round_timelines(measured(record, SECONDS))

    assert timeline.seconds == 10.0
    assert {site: timeline.idle(site) for site in SECONDS} == {"clinic-north": 0.0, "hospital-east": 5.0, "practice-south": 2.5}


def test_the_idle_share_is_of_the_time_of_all_sites(record: RunRecord) -> None:
    assert idle_share(measured(record, SECONDS)) == pytest.approx(7.5 / 30)


def test_the_bars_of_a_site_follow_each_other_and_end_with_its_idle_time(record: RunRecord) -> None:
    figure = timeline_figure(measured(record, SECONDS))
    assert figure is not None

    bars = sorted(
        (base, seconds, trace["name"])
        for trace in figure["data"]
        for site, base, seconds in zip(trace["y"], trace["base"], trace["x"], strict=True)
        if site == "practice-south"
    )

    assert bars == [(0.0, 1.0, "load"), (1.0, 2.0, "evaluate"), (3.0, 4.0, "train"), (7.0, 0.5, "other"), (7.5, 2.5, "idle")]


def test_rounds_follow_each_other_and_each_begins_when_the_slowest_site_of_the_last_has_finished(record: RunRecord) -> None:
    figure = timeline_figure(record)
    assert figure is not None
    first, second, *_ = round_timelines(record)

    starts = [note["x"] for note in figure["layout"]["annotations"]]

    assert starts[:3] == [0, first.seconds, first.seconds + second.seconds]
    assert [note["text"] for note in figure["layout"]["annotations"]] == [f"round {round_}" for round_ in range(1, 7)]


def test_only_the_newest_rounds_are_drawn(record: RunRecord) -> None:
    many = replace(record, rounds=dict.fromkeys(range(1, 21), record.rounds[6]), updates=dict.fromkeys(range(1, 21), record.updates[6]))

    figure = timeline_figure(many)

    assert figure is not None
    assert [note["text"] for note in figure["layout"]["annotations"]] == [f"round {round_}" for round_ in range(21 - MAX_ROUNDS, 21)]


def test_sites_without_an_aggregated_update_are_not_part_of_a_round(record: RunRecord) -> None:
    third = next(timeline for timeline in round_timelines(record) if timeline.round == 3)
    assert list(third.sites) == ["clinic-north", "hospital-east"], "the update of practice-south was refused"

    failed = record.updates[6]["clinic-north"].model_copy(update={"outcome": Outcome.FAILED})
    last = round_timelines(replace(record, updates={6: record.updates[6] | {"clinic-north": failed}}))[-1]
    assert list(last.sites) == ["hospital-east", "practice-south"]


def test_seconds_that_are_not_finite_are_left_out(record: RunRecord) -> None:
    broken = {"practice-south": {"load": float("inf"), "train": 4.0}, "hospital-east": {"train": float("nan")}}

    [timeline] = round_timelines(measured(record, SECONDS | broken))

    assert timeline.sites == {"clinic-north": {"load": 2.0, "train": 7.0, "transfer": 1.0}, "practice-south": {"train": 4.0}}


def test_without_measurements_there_is_no_figure(record: RunRecord) -> None:
    nothing = replace(record, updates={})

    assert timeline_figure(nothing) is None
    assert idle_share(nothing) is None
