"""How far a run is: from 0 to 100 without a step back while its rounds advance, and 100 exactly when it is complete."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in_runs import World, a_run

from fedpipe_operator.api import FineTuneStatus, ProgressStatus, Reason, Stage
from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.rounds import Observed, Run
from fedpipe_operator.rounds.attempts import Active, Done, Dropped, Pending, WorkState
from fedpipe_operator.rounds.observed import CommitSummary, PlanSummary, summarize_plan
from fedpipe_operator.rounds.progress import progress_of, rounds_in_all, seconds_of_a_round, settled
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.rounds.stages import End, Step
from fedpipe_operator.rounds.work_states import StageContext
from fedpipe_trainer.contract import Artifact, Forecast, Plan, Progress

SITES = ("a", "b")
SECONDS = 100.0
"""Of each round, as measured."""


def a_plan(round_: int, forecast: float = 0.0) -> RoundPlan:
    needs = Forecast(memory_bytes=0, seconds=forecast, upload_bytes=0, download_bytes=0)
    plans = {site: Plan(bits=16, batch_size=1, steps=10, ranks={}, forecast=needs) for site in SITES}
    fields: dict[str, Any] = {"fingerprint": "f", "weights": {}, "selected": SITES, "evaluators": SITES, "needed": 2}
    return RoundPlan(round=round_, started_at=round_ * 1000.0, plans=plans, **fields)


def a_summary(round_: int) -> PlanSummary:
    return summarize_plan(a_plan(round_))


def a_commit(round_: int, seconds: float = SECONDS) -> CommitSummary:
    adapter = Artifact(name="adapter", sha256="0" * 64, size=1)
    return CommitSummary(round_, adapter, (), {}, {}, {}, (), 0.0, round_ * 1000.0 + seconds, 0)


@dataclass(frozen=True)
class At:
    """Where a run is: rounds committed, and the stage, with the share of its steps that each site has done."""

    committed: int
    stage: Stage
    shares: tuple[float, ...] = ()


KINDS = {Stage.PROFILING: TaskKind.PROFILE, Stage.TRAINING: TaskKind.TRAIN, Stage.EVALUATING: TaskKind.EVALUATE}
REASONS = {
    Stage.PROFILING: Reason.PROFILING,
    Stage.PLANNING: Reason.ROUND_PLANNED,
    Stage.TRAINING: Reason.TRAINING,
    Stage.AGGREGATING: Reason.AGGREGATING,
    Stage.EVALUATING: Reason.EVALUATING,
    Stage.EXPORTING: Reason.EXPORTING,
    Stage.SUSPENDED: Reason.SUSPENDED_BY_SPEC,
    Stage.WAITING: Reason.NO_SITES,
    Stage.COMPLETE: Reason.ROUNDS_COMPLETED,
    Stage.FAILED: Reason.QUORUM_OUT_OF_REACH,
}


def progress_at(at: At, run: Run, *, now: float = 0.0, forecast: float = 0.0) -> ProgressStatus:
    kind = KINDS.get(at.stage, TaskKind.TRAIN)
    jobs = {
        f"job-{number}": JobStatus(
            Job(f"job-{number}", kind, site),
            JobState.RUNNING,
            0.0,
            progress=Progress(phase=kind.value, step=round(1000 * share), steps=1000),
        )
        for number, (site, share) in enumerate(zip(SITES, at.shares, strict=False))
    }
    work: dict[str, WorkState] = {status.job.site: Active(0, name) for name, status in jobs.items()}
    planned = at.committed + (at.stage in {Stage.TRAINING, Stage.AGGREGATING})
    observed = Observed(
        jobs=jobs,
        plan=a_plan(planned, forecast) if planned else None,
        plans={one: a_summary(one) for one in range(1, planned + 1)},
        commits={one: a_commit(one) for one in range(1, at.committed + 1)},
    )
    end = {Stage.COMPLETE: End.COMPLETE, Stage.FAILED: End.FAILED}.get(at.stage)
    return progress_of(StageContext(run, observed, now), Step(REASONS[at.stage], "", end=end, work=work), (0, 0))


def with_progress(run: Run, progress: ProgressStatus) -> Run:
    status = run.resource.status.model_copy(update={"progress": progress})
    return replace(run, resource=run.resource.model_copy(update={"status": status}))


SHARES = st.tuples(st.floats(0, 1), st.floats(0, 1))


@st.composite
def lives(draw: st.DrawFn) -> tuple[int, list[At]]:
    """The rounds that a run may take, and where it is at each of its reconciles; it may end early, and tasks may begin again."""
    count = draw(st.integers(1, 6))
    ends_after = draw(st.integers(1, count))

    def reconciles(at: At) -> Iterator[At]:
        yield from (replace(at, shares=draw(SHARES)) for _ in range(draw(st.integers(0, 3))))

    life = [*reconciles(At(0, Stage.PROFILING))]
    for committed in range(ends_after):
        life += [At(committed, Stage.PROFILING, draw(SHARES))] if draw(st.booleans()) else []
        life += [At(committed, Stage.PLANNING), *reconciles(At(committed, Stage.TRAINING))]
        life += [At(committed, draw(st.sampled_from([Stage.SUSPENDED, Stage.WAITING, Stage.AGGREGATING])))]
    life += [*reconciles(At(ends_after, Stage.EVALUATING)), At(ends_after, Stage.EXPORTING), At(ends_after, Stage.COMPLETE)]
    return count, life


@given(lives())
def test_the_percentage_never_falls_nor_exceeds_100_and_is_100_exactly_at_the_end(life: tuple[int, Sequence[At]]) -> None:
    count, reconciles = life
    run = a_run(rounds={"count": count})
    found = []
    for at in reconciles:
        found.append(progress_at(at, run))
        run = with_progress(run, found[-1])
    percentages = [one.percentage for one in found]

    assert percentages == sorted(percentages)
    assert percentages[-1] == 100
    assert all(0 <= one < 100 for one in percentages[:-1])


@given(lives())
def test_what_is_left_is_a_time_once_there_is_a_plan_and_while_the_run_works(life: tuple[int, Sequence[At]]) -> None:
    count, reconciles = life
    run = a_run(rounds={"count": count})
    for at in reconciles:
        left = progress_at(at, run).estimated_remaining_seconds
        works = at.stage not in {Stage.SUSPENDED, Stage.WAITING}
        knows = at.committed > 0 or at.stage in {Stage.TRAINING, Stage.AGGREGATING}

        assert (left is not None) == (works and knows), at
        assert left is None or 0 <= left <= SECONDS * rounds_in_all(StageContext(run, Observed(), 0.0))


@pytest.mark.parametrize(
    ("at", "percentage", "left"),
    [
        (At(0, Stage.WAITING), 0, None),
        (At(0, Stage.PROFILING, (0.0, 0.0)), 0, None),
        (At(0, Stage.PLANNING), 18, None),
        (At(0, Stage.TRAINING, (0.0, 0.0)), 18, 180),
        (At(0, Stage.TRAINING, (1.0, 0.0)), 25, 163),
        (At(0, Stage.AGGREGATING), 34, 144),
        (At(1, Stage.PLANNING), 36, 350),
        (At(2, Stage.TRAINING, (0.5, 0.5)), 62, 207),
        (At(4, Stage.EVALUATING, (0.0, 0.0)), 90, 50),
        (At(4, Stage.EXPORTING), 95, 25),
        (At(2, Stage.EXPORTING), 95, 25),
        (At(4, Stage.COMPLETE), 100, 0),
        (At(2, Stage.FAILED), 54, None),
        (At(2, Stage.SUSPENDED), 54, None),
    ],
    ids=str,
)
def test_a_run_of_four_rounds_of_100_seconds_whose_plan_forecasts_40(at: At, percentage: int, left: int | None) -> None:
    """It counts as 5.5 rounds: one for the profiles, and half a one for the last evaluation and the export."""
    found = progress_at(at, a_run(rounds={"count": 4}), forecast=40.0)

    assert (found.stage, found.percentage, found.estimated_remaining_seconds) == (at.stage, percentage, left)


def test_a_suspension_counts_little_in_the_seconds_of_a_round() -> None:
    rounds = {1: 100.0, 2: 90_000.0, 3: 110.0}
    observed = Observed(plans={one: a_summary(one) for one in rounds}, commits={one: a_commit(one, rounds[one]) for one in rounds})

    assert seconds_of_a_round(a_run().spec, observed) == 110.0


def test_a_round_is_forecast_to_last_no_longer_than_its_deadline() -> None:
    spec = a_run(rounds={"count": 4, "deadline": "3m"}).spec

    assert seconds_of_a_round(spec, Observed(plan=a_plan(1, 40.0))) == 40.0
    assert seconds_of_a_round(spec, Observed(plan=a_plan(1, 4000.0))) == 180.0


def test_without_an_export_the_last_evaluation_is_the_end_of_the_work() -> None:
    run = a_run(rounds={"count": 1}, export={"adapter": False, "merged": False})

    assert rounds_in_all(StageContext(run, Observed(), 0.0)) == 2.25
    assert progress_at(At(1, Stage.EVALUATING, (1.0, 1.0)), run).percentage == 99


def test_more_rounds_take_the_percentage_back_and_fewer_do_not() -> None:
    at, run = At(2, Stage.TRAINING, (0.5, 0.5)), a_run(rounds={"count": 3})
    known = progress_at(at, run)

    more = progress_at(at, with_progress(a_run(rounds={"count": 30}), known))
    fewer = progress_at(at, with_progress(a_run(rounds={"count": 3}), more))

    assert (known.percentage, more.percentage, fewer.percentage) == (76, 10, 76)


def test_a_task_that_is_done_again_does_not_take_the_percentage_back_and_its_seconds_are_counted_again() -> None:
    run = a_run(rounds={"count": 4})
    known = progress_at(At(1, Stage.TRAINING, (0.9, 0.9)), run)
    again = progress_at(At(1, Stage.TRAINING, (0.9, 0.1)), with_progress(run, known))

    assert again.percentage == known.percentage
    assert (again.estimated_remaining_seconds or 0) > (known.estimated_remaining_seconds or 0)


STATES: dict[str, tuple[WorkState, str, float]] = {
    "done": (Done(0), "train", 1.0),
    "dropped: it is not waited for": (Dropped("BadData: gone"), "train", 1.0),
    "pending": (Pending(1), "train", 0.0),
    "loading": (Active(0, "job"), "load", 0.0),
    "evaluating what it starts from": (Active(0, "job"), "evaluate", 0.0),
    "training": (Active(0, "job"), "train", 0.475),
    "unknown": (Active(0, "of an earlier operator"), "train", 0.0),
}


@pytest.mark.parametrize("state", STATES)
def test_what_a_site_has_done_of_its_training(state: str) -> None:
    work, phase, share = STATES[state]
    status = JobStatus(Job("job", TaskKind.TRAIN, "a"), JobState.RUNNING, 0.0, progress=Progress(phase=phase, step=5, steps=10))  # type: ignore[arg-type]
    observed = Observed(jobs={"job": status}, plan=a_plan(1), plans={1: a_summary(1)})
    step = Step(Reason.TRAINING, "", work={"a": work})

    found = progress_of(StageContext(a_run(rounds={"count": 8}), observed, 0.0), step, (0, 0))

    assert found.percentage == int(100 * (1 + 0.9 * share) / 9.5)
    assert (found.sites_done, found.sites_total) == (int(state == "done"), 1)


# --- When it is written


def a_status(now: float, percentage: int, *, round_: int = 1, left: int = 10) -> FineTuneStatus:
    time = f"1970-01-01T00:{int(now) // 60:02}:{int(now) % 60:02}Z"
    fields = {"sites_done": 0, "sites_total": 2, "estimated_remaining_seconds": left, "last_updated_time": time}
    return FineTuneStatus(round=round_, progress=ProgressStatus(stage=Stage.TRAINING, percentage=percentage, **fields))


@pytest.mark.parametrize(
    ("after", "now", "is_written"),
    [
        (a_status(59.0, 11), 59.0, False),
        (a_status(60.0, 11), 60.0, True),
        (a_status(600.0, 10), 600.0, False),
        (a_status(600.0, 10, left=5), 600.0, False),
        (a_status(1.0, 10, round_=2), 1.0, True),
        (a_status(1.0, 11, round_=2), 1.0, True),
    ],
    ids=["too soon", "after a minute", "the same", "other seconds alone", "another round", "another round and percentage"],
)
def test_a_change_of_the_progress_alone_is_written_once_a_minute(after: FineTuneStatus, now: float, is_written: bool) -> None:
    before = a_status(0.0, 10)

    assert settled(before, after, now) == (after if is_written else before)


def test_a_time_that_somebody_else_wrote_does_not_stop_the_writing() -> None:
    before, after = a_status(0.0, 10), a_status(5.0, 11)
    assert before.progress is not None
    odd = before.model_copy(update={"progress": before.progress.model_copy(update={"last_updated_time": "yesterday"})})

    assert settled(odd, after, 70.0) == after


def test_a_whole_run_shows_every_stage_in_order_and_ends_at_100(tmp_path: Path) -> None:
    world, seen = World(a_run(), tmp_path), []

    def keep(run: Run, status: FineTuneStatus) -> None:
        assert status.progress is not None
        seen.append(status.progress)
        World.write_status(world, run, status)

    world.reconciler.status_writer = type("Writer", (), {"write_status": staticmethod(keep), "record_event": world.record_event})()
    world.settle()
    stages = [one.stage for number, one in enumerate(seen) if number == 0 or seen[number - 1].stage is not one.stage]

    assert [one.percentage for one in seen] == sorted(one.percentage for one in seen)
    assert stages == [
        Stage.PROFILING,
        *(2 * [Stage.PLANNING, Stage.TRAINING, Stage.AGGREGATING]),
        Stage.EVALUATING,
        Stage.EXPORTING,
        Stage.COMPLETE,
    ]
    assert (seen[-1].percentage, seen[-1].estimated_remaining_seconds, seen[-1].sites_done, seen[-1].sites_total) == (100, 0, 3, 3)
